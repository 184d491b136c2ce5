"""A hub that keeps what is pushed to it: the few endpoints that a commit takes, on a real socket. A test scripts which of them fail."""

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class ScriptedHub:
    """``files`` are those of each repository, ``private`` whether it is; ``seen`` the requests with their tokens.

    ``fails`` maps a part of a path to the status and message that it is answered with; ``cards`` the metadata of models that are there.
    """

    fails: dict[str, tuple[int, str]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *_: Any) -> None: ...

            def do_GET(self) -> None:
                hub.answer(self, b"")

            def do_POST(self) -> None:
                hub.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path = request.path.partition("?")[0]
        self.seen.append((path, request.headers.get("Authorization", "")))
        self.bodies.append(body)
        status, said = next(((s, {"error": m}) for part, (s, m) in self.fails.items() if part in path), (200, None))
        said = self.reply(path, body) if said is None else said
        if said is None:
            status, said = 404, {"error": "Repository not found"}
            request.send_response(status)
            request.send_header("X-Error-Code", "RepoNotFound")
        else:
            request.send_response(status)
        if status != 200:
            request.send_header("X-Error-Message", said["error"])
        content = json.dumps(said).encode()
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def reply(self, path: str, body: bytes) -> dict[str, Any] | None:
        """What an endpoint answers; None for one that is not played."""
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.files.setdefault(name, {})
            self.private.setdefault(name, asked.get("visibility") == "private" or asked.get("private") is True)
            return {"url": f"{self.url}/{name}", "name": name}
        name = "/".join(parts[2:4])
        if parts[:2] != ["api", "models"]:
            return None
        if parts[4:5] == ["preupload"]:
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]}
        if parts[4:5] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            self.files[name] |= {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
            return {"commitOid": "a" * 40, "commitUrl": f"{self.url}/{name}/commit/{'a' * 40}", "hookOutput": ""}
        if name in self.cards:
            return {"id": name, "modelId": name, "cardData": self.cards[name], "siblings": [], "tags": []}
        return None
