"""Completers, which continue traces for rescue: a checkpoint, or a model on an OpenAI-compatible server."""

from typing import Any

from stepmend.engines import budget
from stepmend.engines.local import LocalEngine
from stepmend.engines.openai import ServerEngine
from stepmend.keys import Chat
from stepmend.locate import judges
from stepmend.locate.faults import Completer
from stepmend.models import chat, load
from stepmend.records import InputError


def is_server(spec: str) -> bool:
    """Whether a completer is ``NAME=MODEL@BASE_URL``, and no checkpoint."""
    return "@" in spec


def check(spec: str, *, plain_http: bool = False) -> str | None:
    """The folder of a completer that is a checkpoint; None for a server. Raises InputError if it does not exist, or is not allowed."""
    if is_server(spec):
        judges.asked([spec], plain_http=plain_http, what="completer")
        return None
    try:
        return load.locate(spec)
    except InputError as error:
        raise InputError(f"completer: {str(error).removeprefix('model: ')}") from None


def make(
    spec: str, max_new_tokens: int, slots: int | None, dtype: str = "auto", *, plain_http: bool = False, wanted: Chat | None = None
) -> Completer:
    """The completer of a recipe; it gets full precision's prompt, in its own chat template.

    Args:
        spec: A folder, a hub name, ``builtin:NAME``, or ``NAME=MODEL@BASE_URL``, where MODEL also names the tokenizer.
        max_new_tokens: Tokens after which a continuation is cut off.
        slots: Continuations generated in parallel; None: as many as fit.
        dtype: What a checkpoint is computed in.
        plain_http: Whether plain http to another machine is allowed.
        wanted: The recipe's prompt settings.

    Raises InputError for any other value, and if the model or its tokenizer does not exist.
    """
    if (folder := check(spec, plain_http=plain_http)) is None:
        judge = judges.parse(spec, what="completer")
        tokenizer, builtin, folder = _tokenizer(judge.model, judge.name), False, judge.model
        engine = ServerEngine(judge.name, judge.model, judge.url, tokenizer, max_new_tokens)
    else:
        tokenizer, builtin = load.load_tokenizer(folder), spec.startswith(load.BUILTIN)
        model = load.load_model(folder, dtype)
        engine = LocalEngine(model, tokenizer, max_new_tokens, slots or budget.slots_for(model.config, max_new_tokens, model.device.type))
    if wanted and not chat.switches(tokenizer):
        wanted = wanted.model_copy(update={"thinking": None})
    form = chat.form_of(tokenizer, folder, wanted, builtin=builtin)
    return Completer(engine, lambda problem: form.render(tokenizer, problem.question))


def _tokenizer(model: str, name: str) -> Any:
    try:
        return load.load_tokenizer(model)
    except InputError as error:
        raise InputError(f"completer {name}: {error}; MODEL must be a folder or hub name that holds the served model's tokenizer") from None
