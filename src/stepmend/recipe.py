"""Everything that decides a run's result, in one frozen object: read from YAML, changed by ``--set key=value``, kept with the run."""

import reprlib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from stepmend import inputs
from stepmend.arms import of_folder
from stepmend.benchmarks.names import Benchmark
from stepmend.plain import Plain
from stepmend.quantize.schemes import canonical
from stepmend.records import InputError

LARGEST = 1_000_000_000
"""The largest number that any key takes, where it says nothing else."""

LONGEST = 1 << 18
"""Bytes of a recipe's file."""


class Part(BaseModel):
    """Base of a recipe's parts: immutable, strict about keys it does not know, every number finite and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("true and false are no values of this key")
        return value

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not abs(value) <= LARGEST:  # and so no NaN
            raise ValueError(f"a number up to {LARGEST:,} is needed")
        return value


class Chat(Part):
    """How the model is asked, in its own chat template. What is not set is chosen by the model."""

    thinking: bool | None = Field(
        default=None, description="whether a model that thinks on request is asked to; default: it is, unless it was aligned without"
    )
    system: str | None = Field(default=None, min_length=1, max_length=20_000, description="the system message; default: the template's own")
    prompt: str | None = Field(
        default=None,
        max_length=20_000,
        description="what is asked: plain-1, steps-1, think-1, or a text with {question} in it; default: by the model",
    )

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str | None) -> str | None:
        from stepmend.models import prompts

        if prompt is not None and prompt not in prompts.PROMPTS and prompts.QUESTION not in prompt:
            raise ValueError(f"a text with {prompts.QUESTION} in it, or one of {', '.join(prompts.PROMPTS)} is needed")
        return prompt


class Measure(Part):
    """What every arm solves."""

    problems: int | None = Field(default=None, ge=1, description="test problems; of story a level (default 300), of others in all (all)")
    max_new_tokens: int | None = Field(
        default=None, ge=8, description="tokens after which a solution is cut off; default 180 or 1024, of a model that thinks 32,768"
    )
    batch_size: int | None = Field(default=None, ge=1, description="solutions generated at once; default 150, 32, or what fits a GPU")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what models compute in; auto: on a GPU their own, on a CPU bfloat16 where that is faster, else float32"
    )
    engines: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda engines: not engines,
        description="what writes solutions: transformers (default) or vllm, for all arms or NAME=… for one; NAME=MODEL@BASE_URL",
    )
    noise_floor: bool = Field(default=True, description="solve the test problems once more in other batches, to see what chance changes")
    margin: float = Field(
        default=1.0, gt=0, le=100, allow_inf_nan=False, description="points that an arm may lose and still be called not worse"
    )
    temperature: float = Field(
        default=0.0, ge=0, le=2, exclude_if=lambda value: value == 0, description="of the softmax that tokens are drawn from; 0 is greedy"
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda value: value == 1,
        description="tokens are drawn from the likeliest ones that together have this probability",
    )
    samples: int = Field(
        default=1,
        ge=1,
        le=256,
        exclude_if=lambda value: value == 1,
        description="solutions of each test and curate problem: accuracy is avg@k, and pass@k is shown",
    )

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        """Nothing is set that would have no effect."""
        for name, value in (("samples", self.samples), ("top_p", self.top_p)):
            if value != 1 and not self.temperature:
                raise ValueError(f"{name} = {value:g} has an effect with measure.temperature above 0 only; models' cards mostly say 0.6")
        return self

    @field_validator("engines")
    @classmethod
    def _engines(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        from stepmend.engines import named

        for spec in specs:
            named.split(spec)
        return specs


class Quantize(Part):
    """How schemes are calibrated."""

    calibration: int = Field(default=64, ge=8, description="calibration problems, solved by the parent itself")


class Locate(Part):
    """Which locators vote."""

    locators: tuple[Literal["equations", "rescue", "margins", "reference", "solution"], ...] = Field(
        default=("equations", "rescue", "margins", "reference", "solution"),
        min_length=1,
        description="reference compares with the benchmark's worked solution, on curate problems; solution with full precision's right one",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="rescue: continuations a cut, 1 is greedy; default 1 for the built-in reasoners, 8 for others",
    )
    temperature: float = Field(default=0.6, gt=0, le=2, description="rescue: temperature of sampled continuations")
    threshold: float = Field(default=0.5, gt=0, le=1, description="probability of a step below which the vote names none")
    completer: str | None = Field(
        default=None, description="rescue: a better model, a folder, hub name or NAME=MODEL@BASE_URL; default: full precision"
    )
    reliabilities: str | None = Field(
        default=None, description="how far each locator is to be believed: a file that 'bench locate --save' writes; default: built in"
    )
    own_failures: int = Field(
        default=100, ge=0, description="full precision's own failures located for comparison, a random part; each takes many continuations"
    )
    judges: tuple[str, ...] = Field(default=(), description="LLM judges, each NAME=MODEL@BASE_URL; keys come from the environment")
    judges_see_answer: bool = Field(default=True, description="whether judges are told the right answer")
    judge_budget: int | None = Field(default=None, ge=1, description="tokens after which no judge is asked any more")
    judge_timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False, description="seconds that a judge has for one answer in all")
    plain_http: bool = Field(default=False, description="ask judges and completers on other machines by plain http, too")

    @field_validator("locators")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("each locator once")
        return names

    @field_validator("completer")
    @classmethod
    def _completer(cls, spec: str | None) -> str | None:
        from stepmend.locate import judges

        if spec and "@" in spec:
            judges.parse(spec, what="completer")
        return spec

    @field_validator("judges")
    @classmethod
    def _judges(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        from stepmend.locate import judges

        for spec in specs:
            judges.parse(spec)
        return specs


HOW = {"judge_budget", "judge_timeout", "plain_http", "reliabilities", "own_failures"}
"""Keys of ``Locate`` that decide no fault by themselves."""


class Curate(Part):
    """Where bullets come from, and calibration problems: never from what is reported."""

    benchmark: Benchmark | None = Field(default=None, description="another benchmark to tune on; default: the one that is reported")
    data: str | None = Field(default=None, description="that benchmark's file or folder")
    bullets: int = Field(default=332, ge=1, description="bullets a scheme, at the most (the paper's number)")
    problems: int = Field(default=4500, ge=1, description="curate problems searched for regressions, at the most")
    round: int = Field(default=900, ge=1, description="curate problems solved before looking whether there are enough")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.data and not self.benchmark:
            raise ValueError("data needs curate.benchmark, which says how to read it")
        return self


ONLY = {"weight": "distill", "features": "distill", "question": "distill", "anchors": "distill", "beta": "dpo", "keep_chosen": "dpo"}
"""Keys of ``Restore`` that only one objective reads."""


class Restore(Part):
    """What is tuned, towards what, and on which part of a bullet (formulas and sources: ``restore/losses.py``)."""

    tune: Literal["codes", "scales", "norms", "codes+scales", "codes+norms", "scales+norms", "codes+scales+norms", "lora"] = Field(
        default="codes+scales+norms", description="codes are solved layer by layer; scales, norms or an adapter are tuned end to end"
    )
    objective: Literal["sft", "dpo", "distill"] = "distill"
    span: Literal["step", "prefix", "tail", "whole"] | None = Field(
        default=None,
        description="what the loss is on: the faulty step, the start through it, it to the end, all; default: step for dpo, else whole",
    )
    prefix: Literal["quantized", "full"] = Field(default="quantized", description="whose text stands before the step")
    weight: Literal["uniform", "low-entropy", "small-margin"] = Field(
        default="uniform", description="distill: tokens that full precision is sure of, or nearly undecided about, count more"
    )
    features: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="distill: weight of the last hidden state's distance")
    question: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="distill: weight of the question's own tokens")
    steps: int = Field(
        default=200, ge=0, le=1_000_000, description="optimizer steps, at most: distillation ends where validation stops improving; 0: none"
    )
    batch_size: int = Field(default=8, ge=1, description="texts a step")
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="peak rate; default: found by a range test")
    anchors: int = Field(
        default=1600, ge=0, description="distill: solutions that both models wrote, right or wrong, taught beside the bullets, at most"
    )
    validation: int = Field(
        default=48, ge=0, description="curate problems held out to choose the rate and the state, and to accept it; 0: none"
    )
    solve_tokens: int = Field(default=65536, ge=1024, description="codes: tokens of text that they are solved on, at most")
    beta: float = Field(default=0.1, gt=0, description="DPO: strength of the reference")
    keep_chosen: float = Field(default=0.2, ge=0, description="DPO: weight of the chosen step's likelihood")
    lora_rank: int = Field(default=8, ge=1, le=1024, description="lora: rank of the adapter; its alpha is twice that")
    rounds: int = Field(default=1, ge=1, le=8, description="times round the loop: locate again on the restored model, and tune on")
    within_noise: bool = Field(default=False, description="restore even where the loss is within noise (loss recovered stays undefined)")

    @model_validator(mode="after")
    def _read(self) -> Self:
        """Nothing is set that would have no effect."""
        wrong = [name for name, objective in ONLY.items() if self.objective != objective]
        wrong += ["lora_rank"] if self.tune != "lora" else []
        wrong += ["solve_tokens"] if "codes" not in self.kinds else []
        for name in wrong:
            if getattr(self, name) != type(self).model_fields[name].default:
                needed = f"objective = {ONLY[name]}" if name in ONLY else f"tune = {'lora' if name == 'lora_rank' else 'codes'}"
                raise ValueError(f"{name} has an effect with restore.{needed} only")
        return self

    @property
    def kinds(self) -> frozenset[str]:
        """What is restored: of ``codes``, ``scales``, ``norms``, or ``lora``."""
        return frozenset(self.tune.split("+"))

    @property
    def trained(self) -> Literal["step", "prefix", "tail", "whole"]:
        """The span that the loss is on: the one given, or the objective's own."""
        return self.span or ("step" if self.objective == "dpo" else "whole")


class Recipe(Part):
    """One run. Two runs with equal recipes on equal checkpoints give equal records."""

    model: str = Field(default="builtin:qwen2", description="a folder, a hub name, builtin:qwen2 or builtin:llama")
    schemes: tuple[str, ...] = Field(default=("gptq-w4a16-g128", "gptq-w3a16-g128"), description="none where quantized names checkpoints")
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
    quick: bool = Field(default=False, description="few problems: the same stages, and figures that prove nothing")
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
            raise ValueError("each scheme once")
        return names

    @field_validator("quantized")
    @classmethod
    def _named(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        named, made = [str(of_folder(path)) for path in paths], info.data.get("schemes", (None,))
        if not paths and not made:
            raise ValueError("where schemes is empty, a low-bit checkpoint is needed")
        if len({*named, *made}) < len(named) + len(made):
            raise ValueError("two folders have one name, or one a scheme's; rename a folder, for arms are named after them")
        return paths

    @model_validator(mode="after")
    def _engines(self) -> Self:
        from stepmend.engines import named

        named.check(self.measure.engines, self.low_bit)
        return self

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """Where checkpoints are given, no scheme is made unless it is asked for."""
        return {"schemes": ()} | values if isinstance(values, dict) and values.get("quantized") else values

    @property
    def low_bit(self) -> tuple[str, ...]:
        """The names of the low-bit arms: schemes, then the checkpoints that are given."""
        return *self.schemes, *(str(of_folder(path)) for path in self.quantized)

    @classmethod
    def make(cls, values: dict[str, Any]) -> Self:
        """A recipe from plain values. Raises InputError that names the key, the value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(_explain(item) for item in error.errors())) from None

    @classmethod
    def from_yaml(cls, file: Path) -> dict[str, Any]:
        """The plain values of a YAML file. Raises InputError where it cannot be read."""
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
        """The recipe a run keeps. Raises InputError where the file is damaged."""
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
"""Keys that decide how work is done, or what is said of it, and nothing that is made."""
ROUNDED = ("rtn-w4a16-g128", "rtn-w3a16-g128")
"""The demo's schemes: plain rounding, for calibrated on a model's own traces GPTQ leaves the built-in reasoners next to nothing to mend."""
QUICK: dict[str, Any] = {
    "quick": True,
    "measure": {"problems": 80},
    "curate": {"problems": 450, "round": 450, "bullets": 64},
    "restore": {"steps": 30, "learning_rate": 0.002, "within_noise": True},
}
"""What ``--quick`` sets; so few problems may show no loss, so it restores in any case, and every stage is seen. So few steps are
small ones: at the usual rate they end before they have come back from their first excursion."""


def quick(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over those of ``--quick``, whose learning rate suits the default tuning alone."""
    asked, below = values.get("restore"), QUICK
    if isinstance(asked, dict) and {"objective", "tune"} & asked.keys():
        below = {**QUICK, "restore": {key: value for key, value in QUICK["restore"].items() if key != "learning_rate"}}
    return merge(below, values)


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """``values`` with ``key.sub=value`` assignments (values in YAML) laid over it. Raises InputError for what is no assignment."""
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
    """A value as Python writes it, cut where it is long."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a huge {type(value).__name__}"


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 120
