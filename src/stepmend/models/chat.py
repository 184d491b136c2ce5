"""Prompting: a prompt (``prompts.py``), a system message, and the model's own chat template."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from stepmend import inputs
from stepmend.grading.visible import THOUGHTS
from stepmend.keys import Chat
from stepmend.models.prompts import PROMPTS, filled
from stepmend.records import InputError

__all__ = [
    "PROMPTS", "Form", "aligned", "decode", "encode", "form_of", "opening", "prompt_for", "render", "switches", "token_spans", "tokens_for",
]  # fmt: skip

TODAY = date(2025, 1, 1)
"""The date given to chat templates that print it, fixed so that prompts do not change from day to day."""
TEMPLATE = {"date_string": TODAY.strftime("%d %b %Y"), "strftime_now": TODAY.strftime}
"""Variables passed to chat templates."""
SWITCHES = ("enable_thinking", "thinking")
"""Names of the chat-template variable that turns thinking on: Qwen3's, and that of Granite and DeepSeek-V3.1."""
SOLUTION, THOUGHT, BUILTIN = 1024, 32_768, 180
"""Tokens after which a solution is cut off, if the recipe does not say: of most models; of those that think, as the model cards of
DeepSeek-R1 and Qwen3 recommend; of the built-in reasoners."""
NEAR = 16
"""Tokens before one that may change how it is written: bytes of one character, blanks at a text's start."""
ALIGNED = "align.json"
"""The file of an aligned checkpoint that records its settings and its prompt."""


def aligned(folder: str | Path) -> dict[str, Any]:
    """The settings of an aligned checkpoint; empty if ``folder`` holds no aligned one."""
    try:
        found = json.loads(inputs.content(Path(folder) / ALIGNED))
    except (ValueError, RecursionError):  # InputError is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def prompt_for(folder: str, builtin: bool, thinks: bool = False) -> str:
    """The prompt of a checkpoint: the one it was aligned to, else ``plain-1`` for the built-in reasoners, ``think-1`` for models that
    think, and ``steps-1`` for others."""
    return aligned(folder).get("settings", {}).get("prompt", "plain-1" if builtin else "think-1" if thinks else "steps-1")


@dataclass(frozen=True)
class Form:
    """How a model is prompted.

    Attributes:
        prompt: The prompt's name in ``PROMPTS``, or its text.
        system: The system message; None for the template's own.
        thinking: Whether thinking is turned on, if its chat template has a switch for it.
        opening: The start of a thought that the rendered question ends in, such as ``<think>``; empty for most models.
    """

    prompt: str
    system: str | None = None
    thinking: bool = False
    opening: str = ""

    @property
    def thinks(self) -> bool:
        """Whether solutions are expected to start with a thought."""
        return self.thinking or bool(self.opening)

    @property
    def name(self) -> str:
        """What names this form in digests and on cards: the prompt's name if there is nothing else to say."""
        more = {"system": self.system, "thinking": self.thinking or None}
        more = {key: value for key, value in more.items() if value is not None}
        return json.dumps({"prompt": self.prompt, **more}, ensure_ascii=False) if more else self.prompt

    def render(self, tokenizer: Any, question: str) -> str:
        """The text up to where the model's answer starts."""
        return render(tokenizer, self.prompt, question, system=self.system, thinking=self.thinking)


def form_of(tokenizer: Any, folder: str, wanted: Chat | None = None, *, builtin: bool = False) -> Form:
    """How the checkpoint in ``folder`` is prompted: by the recipe, and by the model's defaults for keys that are not set.

    A model that can think does so, unless it was aligned, because alignment is done without thinking. Raises InputError for a system
    message or a thinking setting that the chat template does not support.
    """
    wanted = wanted or Chat()
    asks = switches(tokenizer)
    thinking = (asks and not aligned(folder)) if wanted.thinking is None else wanted.thinking
    opens = opening(render(tokenizer, "plain-1", "?", thinking=thinking))
    if wanted.thinking is not None and not asks and wanted.thinking != bool(opens):
        has = "always opens a thought" if opens else "has no switch for thinking"
        raise InputError(f"recipe: chat.thinking = {str(wanted.thinking).lower()}: the model's chat template {has}; remove the key")
    thinking = thinking and asks
    form = Form(wanted.prompt or prompt_for(folder, builtin, thinking or bool(opens)), wanted.system, thinking, opens)
    if form.system is not None and form.system.strip() not in _rendered_system(tokenizer, form):
        raise InputError("recipe: chat.system: the model's chat template takes no system message; put it into chat.prompt")
    return form


def _rendered_system(tokenizer: Any, form: Form) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return form.render(tokenizer, "?")
    except TemplateError:  # some templates refuse the role
        return ""


def switches(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template has a switch for thinking: whether what it writes depends on one."""
    off, on = (render(tokenizer, "plain-1", "?", thinking=thinking) for thinking in (False, True))
    return off != on


def opening(text: str) -> str:
    """The start of a thought that a rendered question ends in, with the blanks after it; empty if it ends in none."""
    *_, last = [None, *THOUGHTS.finditer(text)]
    return text[last.start() :] if last and last["open"] and not text[last.end() :].strip() else ""


def tokens_for(form: Form, config: Any, *, builtin: bool = False) -> int:
    """Tokens after which a solution is cut off, if the recipe does not say; a thought takes at most three quarters of the positions
    that a model's configuration knows."""
    if not form.thinks:
        return BUILTIN if builtin else SOLUTION
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(THOUGHT, 3 * positions // 4) if positions else THOUGHT


def render(
    tokenizer: Any, prompt: str, question: str, shown: Sequence[tuple[str, str]] = (), *, system: str | None = None, thinking: bool = False
) -> str:
    """The text up to where the model's answer starts, by the tokenizer's own chat template.

    Args:
        tokenizer: The model's own.
        prompt: A name in ``PROMPTS``, or a text with ``{question}`` in it.
        question: The question.
        shown: Earlier turns of user and assistant.
        system: The system message; None leaves it to the template.
        thinking: The value passed to templates with a thinking switch.
    """
    turns = [part for asked, said in shown for part in (filled(prompt, asked), said)]
    turns.append(filled(prompt, question))
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]
    messages = [{"role": "system", "content": system}, *messages] if system is not None else messages
    told = {**TEMPLATE, **dict.fromkeys(SWITCHES, thinking)}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text; the template has written the special tokens already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without special ones; but those that start or end a thought (Magistral's ``[THINK]``) are part of it."""
    return _decoder(tokenizer)(tokens)


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    dropped = {i for i, text in special.items() if not THOUGHTS.fullmatch(text)}
    if len(dropped) == len(special):
        return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)
    return lambda tokens: tokenizer.decode([token for token in tokens if token not in dropped], skip_special_tokens=False)


def token_spans(tokenizer: Any, tokens: tuple[int, ...] | list[int]) -> list[tuple[int, int]]:
    """The half-open span that each token takes in the text of all of them; special tokens take none (``decode``)."""
    text_of, spans, end = _decoder(tokenizer), [], 0
    for i in range(len(tokens)):
        # A token's text is what it adds to those before it; how a text starts changes nothing far after.
        near = tokens[max(0, i - NEAR) : i + 1]
        before, after = (len(text_of(part)) for part in (near[:-1], near))
        spans.append((end, end + max(0, after - before)))
        end = spans[-1][1]
    return spans
