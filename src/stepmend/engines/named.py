"""Which engine generates an arm's solutions, by ``measure.engines`` of the recipe. Imports neither torch nor a server's client.

An engine is ``transformers`` or ``vllm``, in this process and for every arm, or after ``NAME=`` for one; or ``NAME=MODEL@URL``, where a
server at that address serves the arm's checkpoint as MODEL. NAME is the name of an arm's folder: ``full``, a scheme or a given
checkpoint, or ``SCHEME-restored``. ``NAME=vllm`` also applies to the arms that are restored from NAME.
"""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stepmend.arms import AGAIN, FULL, parse
from stepmend.locate import judges
from stepmend.records import InputError, digest

Kind = Literal["transformers", "vllm", "openai"]
HERE: tuple[Kind, ...] = ("transformers", "vllm")
"""Engines that load a checkpoint into this process."""
SCORES: tuple[Kind, ...] = ("transformers",)
"""Engines that can score; the others only generate."""
NAMES: dict[Kind, str] = {"transformers": "transformers", "vllm": "vLLM", "openai": "a server"}
WHAT = "an engine is transformers, vllm, NAME=transformers, NAME=vllm or NAME=MODEL@BASE_URL"


class Spec(BaseModel):
    """An engine and its checkpoint as plain data, from which any process can build the engine (``engines/make.py``).

    ``checkpoint`` and ``tokenizer`` are folders; ``server`` is (name, model, address) of a server. ``slots`` is how many solutions are
    generated in parallel in this process. ``content`` is the checkpoint's digest, as a folder may later hold another checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    checkpoint: str
    tokenizer: str
    max_new_tokens: int
    dtype: str
    slots: int
    server: tuple[str, str, str] | None = None
    content: str = ""


def split(spec: str) -> tuple[str, str]:
    """What is named, empty for every arm, and its engine. Raises InputError for what is not an engine; an address is not repeated."""
    name, named, what = spec.partition("=")
    if not named:
        name, what = "", spec
    if what in HERE:
        return name, what
    if named and "@" in what:
        judges.parse(spec, what="engine")
        return name, what
    raise InputError(f"engine: {spec.partition('@')[0][:60]!r}: {WHAT}")


def check(specs: Sequence[str], low_bit: Iterable[str]) -> None:
    """Raises InputError for an engine of an arm that a run of these low-bit arms does not have, and for two engines of one."""
    schemes = {parse(name).folder for name in low_bit}
    names = [split(spec)[0] for spec in specs]
    for name in names:
        base = name.partition("-restored")[0] if name not in schemes else name
        if name and name != FULL and base not in schemes:
            allowed = ", ".join([FULL, *(name for scheme in sorted(schemes) for name in (scheme, f"{scheme}-restored"))])
            raise InputError(f"engine: there is no arm {name[:60]!r}; allowed: {allowed}")
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise InputError(f"engine: two engines are named for {twice or 'all arms'}")


def of(specs: Sequence[str], arm: str) -> tuple[Kind, str]:
    """The kind of engine that generates an arm's solutions, and the recipe's entry for it, empty for the default."""
    found = {name: (what, spec) for spec in specs for name, what in [split(spec)]}
    arm = FULL if arm == AGAIN else arm
    parsed = parse(arm)
    what, spec = found.get(parsed.folder, (None, ""))
    if what is None:
        what, spec = found.get(parsed.scheme, (None, "")) if parsed.scheme else (None, "")
        if what is None or what not in HERE:  # a server serves the one checkpoint that it was started with
            what, spec = found.get("", ("transformers", ""))
    return ("openai" if what not in HERE else what), spec


def described(specs: Sequence[str], arms: Iterable[str]) -> str:
    """Which engine wrote each arm's solutions, in words; empty if nothing was named."""
    by: dict[str, list[str]] = {}
    for arm in arms if specs else ():
        by.setdefault(NAMES[of(specs, arm)[0]], []).append(arm)
    said = "; ".join(f"{name} wrote {', '.join(wrote)}" for name, wrote in by.items())
    mixed = ". What differs between arms of two engines may be the engines' doing" if len(by) > 1 else ""
    return f"Engines: {said}{mixed}." if by else ""


def identity(kind: Kind, spec: str, dtype: str) -> tuple[str, ...]:
    """The part of digests that identifies an engine, besides the checkpoint; empty for transformers in this process."""
    if kind == "openai":
        judge = judges.parse(spec, what="engine")
        return (digest("openai", judge.model, judge.url),)
    return () if kind == "transformers" else (digest("vllm", dtype),)


def ready(specs: Sequence[str], arms: Iterable[str], locators: Iterable[str], *, plain_http: bool) -> None:
    """Check before any work: raises InputError if an engine is not installed or not allowed, or cannot score as a locator needs."""
    judges.asked([spec for spec in specs if split(spec)[1] not in HERE], plain_http=plain_http, what="engine")
    kinds = {arm: of(specs, arm)[0] for arm in arms}
    if "vllm" in kinds.values() and find_spec("vllm") is None:
        raise InputError("engine vllm: vllm is not installed; install it with: pip install 'stepmend[vllm]'")
    silent = [arm for arm, kind in kinds.items() if kind not in SCORES]
    if silent and "margins" in locators:
        rest = ", ".join(name for name in locators if name != "margins") or "equations"
        raise InputError(
            f"engine: {kinds[silent[0]]}, of {silent[0]}, cannot score, and the locator margins needs scores; remove the locator "
            f"with --set 'locate.locators=[{rest}]', or use transformers for {silent[0]}"
        )
