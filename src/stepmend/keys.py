"""The parts of a recipe: the keys, their defaults and their allowed values. ``recipe.py`` combines and reads them."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from stepmend.benchmarks.names import Benchmark

LARGEST = 1_000_000_000
"""The largest number that any key takes, where it says nothing else."""


class Part(BaseModel):
    """Base of a recipe's parts: immutable, strict about keys it does not know, every number finite and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("true and false are not allowed for this key")
        return value

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not abs(value) <= LARGEST:  # and so no NaN
            raise ValueError(f"a number up to {LARGEST:,} is needed")
        return value


class Chat(Part):
    """How the model is prompted, in its own chat template. Keys that are not set depend on the model."""

    thinking: bool | None = Field(
        default=None, description="turn thinking on for models with a thinking switch; default: on, unless the model was aligned without"
    )
    system: str | None = Field(default=None, min_length=1, max_length=20_000, description="the system message; default: the template's own")
    prompt: str | None = Field(
        default=None,
        max_length=20_000,
        description="the prompt: plain-1, steps-1, think-1, or a text that contains {question}; the default depends on the model",
    )

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str | None) -> str | None:
        from stepmend.models import prompts

        if prompt is not None and prompt not in prompts.PROMPTS and prompts.QUESTION not in prompt:
            raise ValueError(f"a text with {prompts.QUESTION} in it, or one of {', '.join(prompts.PROMPTS)} is needed")
        return prompt


class Measure(Part):
    """What every arm solves, and how."""

    problems: int | None = Field(
        default=None, ge=1, description="number of test problems; story: per level (default 300); others: in total (default all)"
    )
    max_new_tokens: int | None = Field(
        default=None, ge=8, description="maximum tokens of a solution; default 180 or 1024, for models that think 32,768"
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="solutions generated in parallel; default 150, 32, or what fits on a GPU"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="compute dtype; auto: on a GPU the checkpoint's own, on a CPU bfloat16 if that is faster, else float32"
    )
    engines: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda engines: not engines,
        description="engines of solutions: transformers (default) or vllm, for all arms, or for one as NAME=…; NAME=MODEL@BASE_URL",
    )
    noise_floor: bool = Field(default=True, description="solve the test problems again with another batch size, to measure the noise floor")
    margin: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False, description="non-inferiority margin, in points of accuracy")
    temperature: float = Field(
        default=0.0, ge=0, le=2, exclude_if=lambda value: value == 0, description="sampling temperature; 0 is greedy decoding"
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda value: value == 1,
        description="nucleus sampling: total probability of the tokens that are sampled from",
    )
    samples: int = Field(
        default=1,
        ge=1,
        le=256,
        exclude_if=lambda value: value == 1,
        description="solutions per test and curate problem: accuracy is avg@k, and pass@k is shown",
    )

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        """Nothing is set that would have no effect."""
        for name, value in (("samples", self.samples), ("top_p", self.top_p)):
            if value != 1 and not self.temperature:
                raise ValueError(f"{name} = {value:g} has an effect only with measure.temperature above 0; most model cards recommend 0.6")
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
        description="rescue: continuations per cut, 1 is greedy; default 1 for the built-in reasoners, 8 for others",
    )
    temperature: float = Field(default=0.6, gt=0, le=2, description="rescue: temperature of sampled continuations")
    threshold: float = Field(default=0.5, gt=0, le=1, description="minimum probability for the vote to name a step")
    completer: str | None = Field(
        default=None, description="rescue: a better model, a folder, hub name or NAME=MODEL@BASE_URL; default: full precision"
    )
    reliabilities: str | None = Field(
        default=None, description="the locators' reliabilities: a file written by 'bench locate --save'; default: built in"
    )
    own_failures: int = Field(
        default=100,
        ge=0,
        description="maximum number of full precision's own failures that are located for comparison; each takes many continuations",
    )
    judges: tuple[str, ...] = Field(default=(), description="LLM judges, each NAME=MODEL@BASE_URL; keys come from the environment")
    judges_see_answer: bool = Field(default=True, description="show judges the correct answer")
    judge_budget: int | None = Field(default=None, ge=1, description="token budget of all judges together")
    judge_timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False, description="timeout of a judge's answer, in seconds")
    plain_http: bool = Field(default=False, description="allow plain http to judges and completers on other machines")

    @field_validator("locators")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a locator is listed twice")
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
    """Sources of bullets and of calibration problems: never the reported problems."""

    benchmark: Benchmark | None = Field(default=None, description="benchmark to tune on; default: the reported one")
    data: str | None = Field(default=None, description="that benchmark's file or folder")
    bullets: int = Field(default=332, ge=1, description="maximum number of bullets per scheme (the paper's number)")
    problems: int = Field(default=4500, ge=1, description="maximum number of curate problems that are searched for regressions")
    round: int = Field(default=900, ge=1, description="curate problems per round; rounds stop when there are enough bullets")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.data and not self.benchmark:
            raise ValueError("data needs curate.benchmark, which says how to read it")
        return self


ONLY = {"weight": "distill", "features": "distill", "question": "distill", "anchors": "distill", "beta": "dpo", "keep_chosen": "dpo"}
"""Keys of ``Restore`` that only one objective reads."""


class Restore(Part):
    """What is tuned, with which objective, and on which part of a bullet (formulas and sources: ``restore/losses.py``)."""

    tune: Literal["codes", "scales", "norms", "codes+scales", "codes+norms", "scales+norms", "codes+scales+norms", "lora"] = Field(
        default="codes+scales+norms", description="codes are solved layer by layer; scales, norms or an adapter are tuned end to end"
    )
    objective: Literal["sft", "dpo", "distill"] = "distill"
    span: Literal["step", "prefix", "tail", "whole"] | None = Field(
        default=None,
        description="tokens in the loss: the faulty step, all up to it, all from it on, or all; default: step for dpo, else whole",
    )
    prefix: Literal["quantized", "full"] = Field(default="quantized", description="which model's text precedes the step")
    weight: Literal["uniform", "low-entropy", "small-margin"] = Field(
        default="uniform", description="distill: give more weight to tokens with low entropy, or with a small margin, in full precision"
    )
    features: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="distill: weight of the distance of last hidden states")
    question: float = Field(default=0.1, ge=0, allow_inf_nan=False, description="distill: weight of the question's own tokens")
    steps: int = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="maximum number of optimizer steps: distillation ends when validation stops improving; 0: no tuning",
    )
    batch_size: int = Field(default=8, ge=1, description="texts per optimizer step")
    learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="peak learning rate; default: found by a range test"
    )
    anchors: int = Field(
        default=1600, ge=0, description="distill: maximum number of further solutions by both models, correct or wrong, that are trained on"
    )
    validation: int = Field(
        default=48, ge=0, description="curate problems held out to choose the rate and the state, and to accept it; 0: none"
    )
    solve_tokens: int = Field(default=65536, ge=1024, description="codes: maximum number of tokens that they are solved on")
    beta: float = Field(default=0.1, gt=0, description="DPO: strength of the reference")
    keep_chosen: float = Field(default=0.2, ge=0, description="DPO: weight of the chosen step's likelihood")
    lora_rank: int = Field(default=8, ge=1, le=1024, description="lora: rank of the adapter; its alpha is twice that")
    rounds: int = Field(default=1, ge=1, le=8, description="rounds of the loop: locate again on the restored model, and tune further")
    within_noise: bool = Field(default=False, description="restore even if the loss is within noise (loss recovered stays undefined)")

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
