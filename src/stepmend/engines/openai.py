"""Completions from any server that speaks OpenAI's completions protocol: vLLM, llama.cpp, transformers serve, SGLang, TGI.

The server gets a rendered text and continues it (``/v1/completions``); the chat protocol would start a new turn, and could not continue
a solution. So the model's own chat template is applied here, by its tokenizer, which MODEL names: a folder, or its name on the hub.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from stepmend.engines.base import Completion, seeded
from stepmend.engines.servers import Servers, UnfinishedError, key_variable
from stepmend.models import chat
from stepmend.records import InputError, digest


class _Reply(BaseModel):
    """The fields of a completion that are read."""

    class Choice(BaseModel):
        text: str
        finish_reason: str | None = None

    choices: list[Choice] = Field(min_length=1)


@dataclass(frozen=True)
class ServerEngine:
    """One model on a server.

    Attributes:
        name: Its name, which selects the API key's environment variable (``STEPMEND_JUDGE_KEY_NAME``, else ``OPENAI_API_KEY``).
        model: The model's name at the server.
        url: The server's address, up to ``/v1``.
        tokenizer: The model's own.
        max_new_tokens: Tokens after which a completion is cut off.
        concurrency: Maximum number of concurrent requests; the server batches them.
        timeout: Total seconds allowed for one completion.
        what: How messages refer to it.
        written: Called with the numbers of tokens as they come.
    """

    name: str
    model: str
    url: str
    tokenizer: Any
    max_new_tokens: int
    concurrency: int = 32
    timeout: float = 600.0
    what: str = "completer"
    written: Callable[[int], None] = lambda count: None

    @property
    def identity(self) -> str:
        """The digest of the model's name and the address."""
        return digest("openai", self.model, self.url)

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """See ``base.Engine``. Raises InputError if the server cannot be reached, refuses, or answers something else."""
        asked = seeded(texts, seed, done)
        with Servers(self.timeout) as servers:
            client = servers.client(self.url, self._key(), retries=4)
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="completions")
            try:
                futures = {pool.submit(self._complete, servers, client, text, (temperature, top_p), own): i for i, text, own in asked}
                for future in as_completed(futures):
                    if future.exception():
                        break
                    yield futures[future], self._counted(future.result())
                else:
                    return
                servers.stop()  # yield the finished completions before raising the error
                pool.shutdown(cancel_futures=True)
                for other, i in futures.items():
                    if other is not future and not other.cancelled() and not other.exception():
                        yield i, self._counted(other.result())
                raise self._refusal(future.exception())
            finally:
                servers.stop()  # where something ended this before all was answered
                pool.shutdown(cancel_futures=True)

    def _counted(self, completion: Completion) -> Completion:
        self.written(len(completion.tokens))
        return completion

    def _refusal(self, error: BaseException | None) -> BaseException:
        """The error for a failed request."""
        import openai

        name = f"{self.what} {self.name}"
        if isinstance(error, openai.APITimeoutError):
            return InputError(f"{name}: no answer within {self.timeout:g} s")
        if isinstance(error, openai.APIConnectionError):
            return InputError(f"{name}: its server cannot be reached; start it and run the same command again")
        if isinstance(error, openai.OpenAIError):
            status = getattr(error, "status_code", None)
            said = f"HTTP {status}" if status else type(error).__name__
            return InputError(
                f"{name}: {said} from its server; it must serve /v1/completions (vLLM, llama.cpp and 'transformers serve' do)"
            )
        if isinstance(error, UnfinishedError):
            return InputError(f"{name}: {error}")
        assert error
        return error

    def _key(self) -> str:
        return os.environ.get(key_variable(self.name), "").strip() or os.environ.get("OPENAI_API_KEY", "").strip() or "none"

    def _complete(self, servers: Servers, client: Any, text: str, drawn: tuple[float, float], seed: int) -> Completion:
        asked = {"model": self.model, "prompt": text, "max_tokens": self.max_new_tokens, "temperature": drawn[0], "seed": seed}
        reply = servers.ask(client.completions.with_streaming_response.create, **asked, top_p=drawn[1])
        try:
            choice = _Reply.model_validate_json(reply).choices[0]
        except ValidationError:
            raise InputError(f"{self.what} {self.name}: the response is not a completion") from None
        finish = "length" if choice.finish_reason == "length" else "stop"
        end = [self.tokenizer.eos_token_id] if finish == "stop" else []
        return Completion(choice.text, (*self._tokens(text, choice.text), *end), finish)

    def _tokens(self, before: str, written: str) -> list[int]:
        """The tokens of what was written, as they are after the text before it, where that keeps its own."""
        first, whole = chat.encode(self.tokenizer, before), chat.encode(self.tokenizer, before + written)
        return list(whole[len(first) :] if whole[: len(first)] == first else chat.encode(self.tokenizer, written))
