"""An OpenAI-compatible server whose behaviour a test scripts, request by request: real sockets, nothing mocked."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Request:
    """What a client sent (names of headers in lower case); ``count`` says how often it has sent these very words to this model before."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    count: int

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def text(self) -> str:
        """The last message."""
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Reply:
    """What the server does: send ``body`` after ``delay`` seconds, or, with ``hang``, nothing until it is closed.

    With ``drip`` it sends a byte that often, in seconds, of its ``body``, of its ``headers`` or of the ``status`` line, until it is
    closed; as ``interim`` it sends that often an answer that says that the real one will follow.
    """

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    hang: bool = False
    drip: float = 0
    drips: Literal["body", "headers", "status", "interim"] = "body"


def completion(content: str | None, tokens: int | None = 100, **more: Any) -> Reply:
    """A chat completion with this text; ``tokens`` None leaves the usage out."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    body: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens}
    return Reply(json.dumps(body), **more)


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it; ``retry_after="0"`` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps({"error": {"message": message, "type": "error", "code": code}}), status, named)


class ScriptedServer:
    """Serves on a port of this machine (0: a free one) until closed; ``script`` answers each request, ``requests`` are all that came."""

    def __init__(self, script: Callable[[Request], Reply], port: int = 0) -> None:
        self.script = script
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = False  # so that closing waits for every connection's thread
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def receive(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        with self._lock:
            asked = body.get("messages") or body["prompt"]
            count = sum(
                (before.body.get("messages") or before.body["prompt"]) == asked and before.model == body["model"]
                for before in self.requests
            )
            request = Request(path, headers, body, count)
            self.requests.append(request)
        reply = self.script(request)
        self._closing.wait(None if reply.hang else reply.delay)
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 10

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server.receive(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                if reply.hang:
                    self.close_connection = True
                    return
                if reply.drip:
                    self.close_connection = True
                    self._drip(reply)
                    return
                data = reply.body.encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client no longer waits

            def _drip(self, reply: Reply) -> None:
                begin = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                first = {"body": begin + b"\r\n", "headers": begin + b"X-Slow: ", "status": b"HTTP/1.1 200 O", "interim": b""}
                part = b"HTTP/1.1 100 Continue\r\n\r\n" if reply.drips == "interim" else b" "
                self.wfile.write(first[reply.drips])
                while not server._closing.wait(reply.drip):
                    try:
                        self.wfile.write(part)
                    except OSError:
                        return

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return Handler
