"""Everything that decides a run's result, in one frozen object: read from YAML, overridden by ``--set key=value``, stored with the run."""

import reprlib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from stepmend import inputs
from stepmend.arms import of_folder
from stepmend.benchmarks.names import Benchmark
from stepmend.keys import Chat, Curate, Locate, Measure, Part, Quantize, Restore
from stepmend.plain import Plain
from stepmend.quantize.schemes import canonical
from stepmend.records import InputError

LONGEST = 1 << 18
"""Bytes of a recipe's file."""


class Recipe(Part):
    """The recipe of a run. Two runs with equal recipes on equal checkpoints give equal records."""

    model: str = Field(default="builtin:qwen2", description="a folder, a hub name, builtin:qwen2 or builtin:llama")
    schemes: tuple[str, ...] = Field(
        default=("gptq-w4a16-g128", "gptq-w3a16-g128"), description="default: none if quantized names checkpoints"
    )
    quantized: tuple[str, ...] = Field(
        default=(),
        validate_default=True,
        description="low-bit checkpoints of the model, restored in their own format: folders or hub names",
    )
    benchmark: Benchmark = "story"
    data: str | None = Field(default=None, description="the benchmark's file, or a folder with train and test; default: the hub")
    question_field: str | None = Field(default=None, description="files: the field of the question")
    answer_field: str | None = Field(default=None, description="files: the field of the answer")
    seed: int = Field(default=0, ge=0)
    quick: bool = Field(default=False, description="few problems: all stages, but figures that prove nothing")
    chat: Chat = Field(default=Chat(), exclude_if=lambda chat: chat == Chat())
    measure: Measure = Measure()
    quantize: Quantize = Quantize()
    locate: Locate = Locate()
    curate: Curate = Curate()
    restore: Restore = Restore()

    @field_validator("schemes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(canonical(name) for name in names)  # arms are named after them
        if len(set(names)) < len(names):
            raise ValueError("a scheme is listed twice")
        return names

    @field_validator("quantized")
    @classmethod
    def _named(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        named, made = [str(of_folder(path)) for path in paths], info.data.get("schemes", (None,))
        if not paths and not made:
            raise ValueError("if schemes is empty, quantized must name a checkpoint")
        if len({*named, *made}) < len(named) + len(made):
            raise ValueError(
                "two folders have the same name, or a folder has a scheme's name; rename one, because arms are named after folders"
            )
        return paths

    @model_validator(mode="after")
    def _engines(self) -> Self:
        from stepmend.engines import named

        named.check(self.measure.engines, self.low_bit)
        return self

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """If checkpoints are given, no scheme is made by default."""
        return {"schemes": ()} | values if isinstance(values, dict) and values.get("quantized") else values

    @property
    def low_bit(self) -> tuple[str, ...]:
        """The names of the low-bit arms: schemes, then the checkpoints that are given."""
        return *self.schemes, *(str(of_folder(path)) for path in self.quantized)

    @classmethod
    def make(cls, values: dict[str, Any]) -> Self:
        """A recipe from plain values. Raises InputError, which names the key, the value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(_explain(item) for item in error.errors())) from None

    @classmethod
    def from_yaml(cls, file: Path) -> dict[str, Any]:
        """The plain values of a YAML file. Raises InputError if it cannot be read."""
        try:
            values = yaml.load(inputs.text(file, LONGEST), Plain)
        except InputError as error:
            raise InputError(f"recipe: cannot read {error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # PyYAML's own, for values and tags
            raise InputError(f"recipe: {file}: a value that YAML cannot read ({error})") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise InputError(f"recipe: {file}{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
        if not isinstance(values or {}, dict):
            raise InputError(f"recipe: {file}: a mapping of keys to values is needed, as in 'seed: 0'")
        return values or {}

    @classmethod
    def from_json(cls, file: Path) -> Self:
        """The recipe stored in a run. Raises InputError if the file is damaged."""
        try:
            return cls.model_validate_json(inputs.content(file, LONGEST))
        except ValidationError:
            raise InputError(f"out: {file} is not a recipe of this version; choose another --out") from None

    def deciding(self) -> dict[str, Any]:
        """The keys that decide what a run makes, with dots, and their values."""
        return {key: value for key, value in _flat(self.model_dump(mode="json")).items() if key not in OPERATIONAL}

    def differences(self, other: "Recipe") -> list[str]:
        """Dotted names of the keys whose values differ."""
        mine, theirs = _flat(self.model_dump()), _flat(other.model_dump())
        return [key for key in mine | theirs if mine.get(key) != theirs.get(key)]


OPERATIONAL = frozenset({"locate.judge_budget", "locate.judge_timeout", "locate.plain_http", "measure.margin"})
"""Keys that control only how work is done or reported; no record depends on them."""
ROUNDED = ("rtn-w4a16-g128", "rtn-w3a16-g128")
"""The demo's schemes: plain rounding, because GPTQ, calibrated on a model's own traces, leaves the built-in reasoners almost no loss to
restore."""
QUICK: dict[str, Any] = {
    "quick": True,
    "measure": {"problems": 80},
    "curate": {"problems": 450, "round": 450, "bullets": 64},
    "restore": {"steps": 30, "learning_rate": 0.002, "within_noise": True},
}
"""The settings of ``--quick``. With few problems the loss may not be significant, so it restores in any case, to run every stage. The
learning rate is small, because at the usual rate so few steps end before they recover from the first increase of the loss."""


def quick(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over those of ``--quick``, whose learning rate suits the default tuning alone."""
    asked, below = values.get("restore"), QUICK
    if isinstance(asked, dict) and {"objective", "tune"} & asked.keys():
        below = {**QUICK, "restore": {key: value for key, value in QUICK["restore"].items() if key != "learning_rate"}}
    return merge(below, values)


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """``values`` with ``key.sub=value`` assignments (values in YAML) laid over it. Raises InputError for what is not an assignment."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment}: key=value is needed, as in --set restore.steps=100")
        try:
            value = yaml.load(text, Plain)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = f" ({problem})" if (problem := getattr(error, "problem", None)) else ""
            raise InputError(f"--set {assignment}: the value is not valid YAML{why}") from None
        *path, last = key.split(".")
        part: dict[str, Any] = {last: value}
        for name in reversed(path):
            part = {name: part}
        values = merge(values, part)
    return values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with ``above`` laid over it, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        mapped = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if mapped else value
    return merged


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _explain(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        part: Any = Recipe
        for name in item["loc"][:-1]:
            part = part.model_fields[str(name)].annotation
        return f"recipe: unknown key {key}; allowed: {', '.join(part.model_fields)}"
    if key in ("locate.judges", "locate.completer", "measure.engines"):  # an address may hold a key by mistake, and is not repeated
        return str(
            item.get("ctx", {}).get("error", f"recipe: {key}: NAME=MODEL@BASE_URL is needed{', in a list' * (key == 'locate.judges')}")
        )
    if isinstance(item["input"], dict):  # said of a whole part, which need not be repeated
        return f"recipe: {f'{key}: ' * bool(key)}{item.get('ctx', {}).get('error', item['msg'])}"
    said = item["msg"].removeprefix("Value error, ")
    return f"recipe: {key} = {_shown(item['input'])}: {said[0].lower()}{said[1:]}"


def _shown(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a huge {type(value).__name__}"


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 120
