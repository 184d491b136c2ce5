"""Completions by vLLM in this process (extra ``vllm``), through its offline class ``LLM`` (https://docs.vllm.ai). It does not score."""

import importlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepmend.engines.base import Completion, seeded
from stepmend.models import chat, load
from stepmend.records import InputError

AT_ONCE = 256
"""Texts per vLLM call: it returns nothing before all are done, so an interruption loses at most these."""
PROMPT = 2048
"""Tokens that a question may have. Rescue appends the start of a solution to it, of up to ``max_new_tokens`` tokens."""


@dataclass
class VLLMEngine:
    """One checkpoint in vLLM, loaded on first use. ``written`` is called with the numbers of new tokens.

    vLLM chooses its own batches, so the last bits of its logits depend on the other texts; its solutions are saved, and not generated
    again.
    """

    checkpoint: str
    tokenizer: Any
    max_new_tokens: int
    dtype: str = "auto"
    written: Callable[[int], None] = lambda count: None
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """The checkpoint's folder, and the dtype."""
        return f"vllm {self.checkpoint} {self.dtype}"

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """See ``base.Engine``. Raises InputError if vLLM cannot load the checkpoint."""
        asked = seeded(texts, seed, done)
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            prompts = [{"prompt_token_ids": list(chat.encode(self.tokenizer, text))} for _, text, _ in part]
            made = self._llm().generate(prompts, [self._sampling(temperature, top_p, own) for _, _, own in part], use_tqdm=False)
            for (i, _, _), output in zip(part, made, strict=True):
                one = output.outputs[0]
                self.written(len(one.token_ids))
                yield i, Completion(one.text, tuple(one.token_ids), "length" if one.finish_reason == "length" else "stop")

    def close(self) -> None:
        """release the model; its memory is free once nothing else holds it."""
        self._loaded.clear()

    def _sampling(self, temperature: float, top_p: float, seed: int) -> Any:
        """The complete sampling settings; those of the checkpoint, such as a repetition penalty, are ignored."""
        ends = sorted(load.ends_of(self.checkpoint))
        vllm = importlib.import_module("vllm")
        return vllm.SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=self.max_new_tokens, stop_token_ids=ends)

    def _llm(self) -> Any:
        if not self._loaded:
            vllm = importlib.import_module("vllm")
            most = getattr(load.config_of(self.checkpoint).get_text_config(), "max_position_embeddings", None)
            room = PROMPT + 2 * self.max_new_tokens
            options = {"dtype": self.dtype, "max_model_len": min(room, most or room), "generation_config": "vllm", "seed": 0}
            try:
                self._loaded.append(vllm.LLM(model=self.checkpoint, **options))
            except (ValueError, RuntimeError, OSError) as error:
                raise InputError(f"engine vllm: cannot load {self.checkpoint} ({' '.join(str(error).split())[:200]})") from None
        return self._loaded[0]
