"""Requests to servers that may be slow, broken or hostile: each answer is complete, within its time and size limits, and from the given
address.

Requests run on an event loop in a separate thread, because only there can they be cancelled at any point; any thread can submit them.
"""

import asyncio
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LARGEST = 8 << 20
"""Bytes of one answer."""
GRACE = 1.0
"""Seconds allowed for pending answers when the work is interrupted."""


def key_variable(name: str) -> str:
    """The environment variable that a server's key is read from, by the name the user gave it; ``-`` and ``.`` become ``_``."""
    return "STEPMEND_JUDGE_KEY_" + re.sub("[.-]", "_", name.upper())


class UnfinishedError(ValueError):
    """An answer that is too large, or incomplete at the time limit; the message says which. Repeating the request is useless."""


class Servers:
    """Concurrent client of OpenAI-compatible servers; a context manager.

    An answer has ``timeout`` seconds in all, from the request to its last byte, the client's own repetitions included. No redirect is
    followed: the key and the question go to the address that was named, and to no other.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._clients: list[AsyncOpenAI] = []
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def client(self, url: str, key: str, retries: int = 0) -> "AsyncOpenAI":
        """A client of one address, which repeats a request ``retries`` times if that may help."""
        import openai

        # What is packed could unpack without end, so nothing packed is asked for, or unpacked.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_bounded]})
        made = openai.AsyncOpenAI(
            api_key=key, base_url=url, timeout=None, max_retries=retries, http_client=http, default_headers={"Accept-Encoding": "identity"}
        )
        self._clients.append(made)
        return made

    def ask(self, create: Callable[..., Any], **asked: Any) -> str:
        """The body of an answer; ``create`` is a client's ``with_streaming_response.create``.

        Raises openai.OpenAIError as the client does, of which APITimeoutError where the time is over and nothing came; UnfinishedError;
        and concurrent.futures.CancelledError once ``stop`` has ended it.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(create, asked), self._loop).result()

    def stop(self) -> None:
        """Cancel all pending requests after ``GRACE`` seconds; their callers get CancelledError."""
        self._loop.call_soon_threadsafe(self._loop.call_later, GRACE, self._cancel)

    async def _ask(self, create: Callable[..., Any], asked: dict[str, Any]) -> str:
        import openai

        if self._stopped:
            raise asyncio.CancelledError
        begun = False
        try:
            async with asyncio.timeout(self.timeout), create(**asked) as response:
                begun = True
                return (await response.read()).decode("utf-8", "replace")
        except TimeoutError:
            if begun:
                raise UnfinishedError(f"no whole answer within {self.timeout:g} s") from None
            raise openai.APITimeoutError(_http().Request("POST", "")) from None

    def _cancel(self) -> None:
        self._stopped = True
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self._clients:
            await client.close()
        await self._loop.shutdown_asyncgens()


def _http() -> Any:
    """The HTTP library of the installed openai: httpx, or httpx2."""
    import openai

    client: Any = openai.DefaultAsyncHttpxClient
    return sys.modules[client.__base__.__module__.partition(".")[0]]


async def _bounded(response: Any) -> None:
    """Lets a response's body be read up to ``LARGEST`` bytes, as it came."""

    class Bounded(_http().AsyncByteStream):
        """The body, or its start."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.inner:
                size += len(part)
                if size > LARGEST:
                    raise UnfinishedError(f"its answer is larger than {LARGEST:,} bytes")
                yield part

        async def aclose(self) -> None:
            await self.inner.aclose()

    response.headers.pop("content-encoding", None)
    response.stream = Bounded(response.stream)
