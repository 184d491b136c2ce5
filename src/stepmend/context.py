"""The context of a run's stages: the recipe, the problems, the run's folder, the models, the verifier, judges and progress."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from stepmend.arms import AGAIN, FULL, parse
from stepmend.benchmarks import sources
from stepmend.curate import leakage
from stepmend.engines import budget
from stepmend.engines import named as engines
from stepmend.engines.base import Engine, Scorer
from stepmend.engines.local import LocalEngine
from stepmend.engines.make import make
from stepmend.engines.named import Spec
from stepmend.engines.spread import Spread
from stepmend.engines.vllm import VLLMEngine
from stepmend.executors.base import Executor
from stepmend.executors.local import Local
from stepmend.executors.ray import Ray
from stepmend.facts import F, Placement, Seconds, name_of
from stepmend.grading import verify
from stepmend.locate import completers, faults, judges, reliability
from stepmend.locate.panel import Panel
from stepmend.models import causal, chat, load
from stepmend.progress import Stages, Tick, silent
from stepmend.quantize import given, schemes
from stepmend.quantize import run as quantizer
from stepmend.recipe import OPERATIONAL, Recipe
from stepmend.records import Grade, InputError, Judgement, Problem, digest
from stepmend.rundir import RunDir
from stepmend.store.progress import Recorder


class Context:
    """One run in one folder, as every stage sees it. ``pipeline.run`` runs the stages on it."""

    def __init__(
        self, recipe: Recipe, out: Path, stages: Stages | None = None, reuse: Sequence[Path] = (), cluster: Ray | None = None
    ) -> None:
        """Open a run's folder, and check everything that can be checked before any work.

        Args:
            recipe: The recipe.
            out: The run's folder.
            stages: The progress display.
            reuse: Other runs, from which results with the same inputs are copied.
            cluster: Generates and scores instead of this process.

        Raises InputError for an invalid model, scheme or folder.
        """
        self.recipe, self.stages, self.cluster = recipe, stages or Stages(), cluster
        self.schemes = [schemes.parse(name) for name in recipe.schemes]
        self.parent = load.locate(recipe.model)
        for scheme in self.schemes:
            quantizer.preflight(self.parent, scheme)
        looked = [given.look(self.parent, recipe.model, path) for path in recipe.quantized]
        self.given = {one.name: one for one in looked}
        if recipe.restore.kinds == {"codes"}:
            self._check_codes()
        dense = [f"{one.name} is {one.low_bit.name}" for one in looked if one.low_bit.multiplied_in]
        if recipe.restore.tune == "lora" and dense:
            raise InputError(f"restore.tune = lora: adapters need a compressed-tensors checkpoint; {dense[0]}")
        if recipe.locate.completer:
            completers.check(recipe.locate.completer, plain_http=recipe.locate.plain_http)
        judges.asked(recipe.locate.judges, plain_http=recipe.locate.plain_http)
        locate = recipe.locate
        engines.ready(recipe.measure.engines, (FULL, *recipe.low_bit), locate.locators, plain_http=locate.plain_http)
        self.tokenizer = load.load_tokenizer(self.parent)
        builtin = recipe.model.startswith(load.BUILTIN)
        self.form = chat.form_of(self.tokenizer, self.parent, recipe.chat, builtin=builtin)
        self.prompt = self.form.name
        self.max_new_tokens = recipe.measure.max_new_tokens or chat.tokens_for(self.form, load.config_of(self.parent), builtin=builtin)
        self.reported = sources.Data(recipe.benchmark, recipe.data, recipe.question_field, recipe.answer_field)
        self.tuned = sources.Data(recipe.curate.benchmark, recipe.curate.data) if recipe.curate.benchmark else self.reported
        self._problems: dict[str, list[Problem]] = {}
        self.held_out = leakage.Index(self.problems("test"))
        self.leaks: dict[str, dict[str, int]] = {}
        if taught := [Problem.model_validate(problem) for problem in chat.aligned(self.parent).get("taught", [])]:
            self.leaks["alignment"] = leakage.check_all(taught, self.held_out)[1]
        for split in ("calibration", "curate"):
            self.problems(split)  # missing problems are reported before any work
        self.rates = reliability.read(Path(recipe.locate.reliabilities)) if recipe.locate.reliabilities else reliability.DEFAULT
        problems = [problem for split in ("test", "curate") for problem in self.problems(split)]
        if cluster:
            self._check_device(cluster)
        self.dir = RunDir(out, recipe, problems, reuse)
        try:
            self._start(builtin)
        except BaseException:  # else the folder stays locked for as long as this process lives
            self.dir.close()
            raise

    def _check_device(self, cluster: Ray) -> None:
        """Raises InputError if the workers' kind of device differs from this process's: results would differ in the last bits."""
        here, there = load.placement(self.parent, "float32")[0], cluster.device
        if here != there:
            raise InputError(f"ray: workers compute on {there}, this process on {here}; start the command on a machine like the workers'")

    def _check_codes(self) -> None:
        """Raises InputError if only codes are to be restored, and those of a scheme or checkpoint are floats, which cannot be changed."""
        given_ = [name for name, one in self.given.items() if all(layer.code == "float" for layer in one.low_bit.layers.values())]
        for name in [*(scheme.name for scheme in self.schemes if scheme.of.kind != "int"), *given_]:
            raise InputError(f"restore.tune = codes: codes of {name} are floats and cannot be changed; use scales+norms")

    def _start(self, builtin: bool) -> None:
        """Set up everything that is read from, or written to, the run's folder before the first stage."""
        recipe, self._recorder = self.recipe, Recorder(self.dir.path)
        self._say_changed()
        self.dir.announce("recipe", digest("recipe", recipe.deciding()))
        self.placed = self._place(builtin)
        self.batch_size = self.placed.slots
        self.engines: dict[str, LocalEngine] = {}
        self._vllm: VLLMEngine | None = None
        self.digests: dict[str, str] = {}
        self.graded: dict[tuple[str, str], Grade] = {}
        self.drawn: dict[tuple[str, str, int], Grade] = {}
        self.verifier = verify.Verifier()
        self.panel = self._panel() if recipe.locate.judges else None
        self.settings = recipe.locate.model_copy(update={"samples": recipe.locate.samples or (1 if builtin else faults.ALONE)})
        self._completer: faults.Completer | None = None
        self.stages.listeners.append(self._recorder)

    def _say_changed(self) -> None:
        """Report the recipe keys that have changed since the folder was last used, except those that do not affect results."""
        if changed := [key for key in self.dir.changed if key not in OPERATIONAL]:
            self.stages.say(f"  the recipe has changed ({', '.join(changed)}): everything that depends on it is computed again")

    def _place(self, builtin: bool) -> Placement:
        """Device, dtype and number of slots: those used before, unless the recipe asks for others; stored with the run."""
        measure, kept = self.recipe.measure, self.dir.fact(Placement) or self._others_placement()
        device, asked = load.placement(self.parent, "float32")[0], digest(measure.dtype, measure.batch_size, self.max_new_tokens)
        same = kept and (kept.device, kept.asked or asked) == (device, asked)
        if kept and same and measure.dtype in ("auto", kept.dtype) and measure.batch_size in (None, kept.slots):
            self.dir.keep(kept)
            return kept  # without another probe, which may come out otherwise on a busy machine
        dtype = str(load.placement(self.parent, measure.dtype)[1]).removeprefix("torch.")
        slots = measure.batch_size or (150 if builtin else budget.slots_for(load.config_of(self.parent), self.max_new_tokens, device))
        self.dir.keep(placed := Placement(device=device, dtype=dtype, slots=slots, asked=asked))
        return placed

    def _others_placement(self) -> Placement | None:
        """The placement of the first reused run, because its records depend on it. How much fits into memory is measured again on this
        machine."""
        found = (other.fact(Placement, "") for other in self.dir.others)
        return next((placed.model_copy(update={"fit": None}) for placed in found if placed), None)

    def _halved(self, count: int) -> None:
        """Record that fewer slots fit into memory than planned; the lower number is also used when the run is resumed."""
        self.stages.say(f"  out of memory: from now on, {count} solutions are generated in parallel")
        self.placed = self.placed.model_copy(update={"fit": count})
        self.dir.keep(self.placed)

    def _panel(self) -> Panel:
        """The recipe's judges; their answers are stored with the run, and no question is asked twice."""
        kept = self.recipe.locate
        asked = judges.asked(kept.judges, plain_http=kept.plain_http)
        named = {(judge.name, judge.model) for judge in asked}
        known = self.dir.adopt(Judgement, lambda one: (one.judge, one.model) in named)
        return Panel(asked, lambda one: self.dir.append([one]), known, budget=kept.judge_budget, timeout=kept.judge_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: object) -> None:
        for other in self.dir.others:
            self.stages.say(f"  {other.summary}")
        kept = self.dir.fact(Seconds)
        earlier = kept.stages if kept else {}
        spent = {name: round(earlier.get(name, 0.0) + seconds, 1) for name, seconds in self.stages.seconds.items()}
        self.dir.keep(Seconds(stages={**earlier, **spent}))  # of all calls together
        self.verifier.__exit__()
        self.stages.listeners.remove(self._recorder)
        self._recorder.close("finished" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed")
        self.dir.close()

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split, all levels; the same for the same recipe. Raises InputError if there are none."""
        if split not in self._problems:
            self._problems[split] = self._read_problems(split)
        return self._problems[split]

    def _read_problems(self, split: str) -> list[Problem]:
        recipe = self.recipe
        if split == "test":
            return self.reported.measured(recipe.measure.problems, recipe.seed)
        count = recipe.quantize.calibration if split == "calibration" else recipe.curate.problems
        found = self.tuned.problems(split, count, recipe.seed)
        kept, self.leaks[split] = leakage.kept(found, self.held_out)
        return kept

    def problem_ids(self, split: str) -> list[str]:
        return [problem.id for problem in self.problems(split)]

    def folder(self, arm: str) -> Path:
        """The folder of an arm's checkpoint."""
        if arm in self.given:
            return Path(self.given[arm].folder)
        return self.dir.path / parse(arm).folder if parse(arm).scheme else Path(self.parent)

    def digest(self, arm: str) -> str:
        """The digest of an arm's checkpoint."""
        if arm not in self.digests:
            self.digests[arm] = load.checkpoint_digest(self.folder(arm))
        return self.digests[arm]

    def made(self, arm: str, checkpoint: str) -> None:
        """Record that an arm's folder now holds another checkpoint, the one with this digest."""
        self.release(arm)
        self.digests[arm] = checkpoint
        self.dir.announce(f"{arm}: checkpoint", checkpoint)

    def engine(self, arm: str) -> LocalEngine:
        """The model of an arm, loaded into this process on first use, whichever engine generates the arm's solutions."""
        arm = FULL if arm == AGAIN else arm
        if arm not in self.engines:
            self._close_vllm()  # which holds most of a GPU's memory
            model = load.load_model(str(self.folder(arm)), self.placed.dtype)
            if arm == FULL:
                causal.check(model)
            self.engines[arm] = LocalEngine(model, self.tokenizer, self.max_new_tokens, self.batch_size, self._halved)
        return self.engines[arm]

    def spec(self, arm: str, size: int) -> Spec:
        """The engine of an arm's solutions, as plain data; with ``size`` slots, or fewer if fewer fit."""
        kind, named = engines.of(self.recipe.measure.engines, arm)
        server = judges.parse(named, what="engine") if kind == "openai" else None
        return Spec(
            kind=kind,
            checkpoint=str(self.folder(FULL if arm == AGAIN else arm)),
            tokenizer=self.parent,
            max_new_tokens=self.max_new_tokens,
            dtype=self.placed.dtype,
            slots=min(size, self.placed.fit or size),
            server=(server.name, server.model, server.url) if server else None,
            content=self.digest(arm) if self.cluster else "",
        )

    def written_by(self, *arms: str) -> tuple[str, ...]:
        """The part of digests that identifies the engines of these arms; empty for transformers in this process."""
        named = self.recipe.measure.engines
        return tuple(part for arm in arms for part in engines.identity(*engines.of(named, arm), self.placed.dtype))

    def scores(self, *arms: str) -> bool:
        """Whether the engines of these arms score texts, as margins need."""
        return all(engines.of(self.recipe.measure.engines, arm)[0] in engines.SCORES for arm in arms)

    def generator(self, arm: str, size: int, tick: Tick = silent) -> Engine:
        """The engine that generates an arm's solutions, ``size`` in parallel; ``tick`` counts the tokens as they are generated."""
        return self._opened(arm, self.spec(arm, size), tick)

    def executor(self, arm: str, tick: Tick = silent) -> Executor:
        """The executor that generates an arm's solutions."""
        return Local(lambda spec: self._opened(arm, spec, tick))

    def _opened(self, arm: str, spec: Spec, tick: Tick) -> Engine:
        def written(count: int) -> None:
            tick(0, count)

        if self.cluster and spec.kind != "openai":
            return self._spread(spec, written)
        if spec.kind == "transformers":
            return replace(self.engine(arm), slots=spec.slots, written=written)
        if spec.kind == "openai":
            return make(spec, self.tokenizer, written)
        if self._vllm is None or self._vllm.checkpoint != spec.checkpoint:
            self.unload_except()
            self._vllm = VLLMEngine(spec.checkpoint, self.tokenizer, spec.max_new_tokens, spec.dtype)
        self._vllm.written = written
        return self._vllm

    def scorer(self, arm: str) -> Scorer:
        """The scorer of an arm's model, in this process or on the cluster."""
        return self._spread(self.spec(arm, self.batch_size)) if self.cluster else self.engine(arm)

    def _spread(self, spec: Spec, written: Callable[[int], None] = lambda count: None) -> Spread:
        assert self.cluster
        return Spread(self.cluster, spec, self.tokenizer, self.placed.device, written)

    def unload_except(self, *arms: str) -> None:
        """Unload all models except these, and free their memory."""
        for arm in self.engines.keys() - {*arms}:
            del self.engines[arm]
        if self._vllm and self._vllm.checkpoint not in {str(self.folder(arm)) for arm in arms}:
            self._close_vllm()
        load.free()

    def release(self, arm: str) -> None:
        """Unload one arm's model."""
        self.engines.pop(arm, None)
        if self._vllm and self._vllm.checkpoint == str(self.folder(arm)):
            self._close_vllm()

    def _close_vllm(self) -> None:
        if self._vllm:
            self._vllm.close()
            self._vllm = None

    def prompt_of(self, problem: Problem) -> str:
        return self.form.render(self.tokenizer, problem.question)

    @property
    def drawing(self) -> tuple[Any, ...]:
        """The sampling settings and the number of samples, as a part of digests; empty for greedy decoding."""
        measure = self.recipe.measure
        return ((measure.temperature, measure.top_p), measure.samples) if measure.temperature else ()

    def where(self) -> tuple[str, str]:
        """The kind of device and the dtype, which affect the last bits of a computation."""
        return self.placed.device, self.placed.dtype

    def finished(self, kind: type[F], arm: str, made_by: str, *earlier: str) -> F | None:
        """The fact that a stage has stored for an arm with this digest of inputs; None if it is not finished. The stage is announced.

        ``earlier`` are the digests of the same inputs in earlier versions: their results are accepted too.
        """
        fact = self.dir.fact(kind, arm, made_by, *earlier)
        self.dir.announce(f"{arm}: {name_of(kind)}", fact.made_by if fact else made_by)
        return fact

    def holds(self, arm: str, checkpoint: str) -> bool:
        """Whether an arm's folder holds the checkpoint with this digest; if it holds another one, this is reported. A missing checkpoint is
        copied from a reused run.
        """
        there = self.folder(arm).exists()
        try:
            same = there and self.digest(arm) == checkpoint
        except (InputError, OSError, ValueError):  # a file of it is missing, or cannot be read
            same = False
        if same:
            self.dir.announce(f"{arm}: checkpoint", checkpoint)
            return True
        self.digests.pop(arm, None)
        if self.dir.take(self.folder(arm), lambda folder: load.checkpoint_digest(folder) == checkpoint):
            self.made(arm, checkpoint)
            return True
        if there:
            self.stages.say(f"  {arm}: its checkpoint differs from the recorded one; it is made again")
        return False

    @property
    def completer(self) -> faults.Completer | None:
        """The recipe's completer, loaded on first use."""
        if self.settings.completer and not self._completer:
            size, plain_http = (self.max_new_tokens, self.batch_size, self.placed.dtype), self.settings.plain_http
            self._completer = completers.make(self.settings.completer, *size, plain_http=plain_http, wanted=self.recipe.chat)
        return self._completer
