"""A run of the version that kept notes: it is reported, compared and resumed; and what becomes of it when something has changed.

``tests/data/run-notes.tar.xz`` is the folder of ``run --model builtin:qwen2 --scheme rtn-w3a16`` with few problems and one control, as
that version left it, without its checkpoints.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from stepmend import Recipe, logs, pipeline
from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.curate import rounds
from stepmend.engines.local import LocalEngine
from stepmend.facts import Card, Control, Curated, Damage, Placement, Quantized, Tuned
from stepmend.locate import run as locating
from stepmend.measure import compare, margins
from stepmend.measure import solve as solving
from stepmend.progress import Stages
from stepmend.quantize import run as quantizer
from stepmend.report import export, page, summary

SCHEME = "rtn-w3a16"
RESTORED = f"{SCHEME}+restored"


@pytest.fixture
def old(tmp_path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / "run-notes.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run-notes"


def opened(folder: Path, changes: dict | None = None) -> Context:
    """The folder's run, with its recipe or a changed one; ``stages.console.file`` is what it says."""
    values = json.loads((folder / "recipe.json").read_text())
    for key, of in (changes or {}).items():
        values[key] = {**values[key], **of}
    return Context(Recipe.make(values), folder, Stages(Console(file=io.StringIO(), width=200)))


def said(context: Context) -> str:
    return context.stages.console.file.getvalue()


@pytest.fixture
def no_generation(monkeypatch):
    def stream(*_, **__):
        raise AssertionError("what is kept is generated again")

    monkeypatch.setattr(LocalEngine, "generate", stream)


def lines(folder: Path, kind: str) -> list[bytes]:
    return (folder / f"{kind}.jsonl").read_bytes().splitlines()


def test_it_is_reported(old, tmp_path):
    found = summary.read(old)
    assert found.arms == [FULL, SCHEME, RESTORED]
    assert [sum(grade.outcome == "correct" for grade in found.grades[arm].values()) for arm in (FULL, SCHEME, RESTORED)] == [43, 39, 8]
    assert len(found.bullets[SCHEME]) == found.facts.get(Curated, SCHEME).bullets == 2
    assert found.facts.get(Damage, SCHEME).flips == 2
    assert (found.facts.get(Tuned, RESTORED).kept, len(found.facts.get(Tuned, RESTORED).losses)) == (True, 10)
    assert set(found.facts.all(Control)) == {f"{SCHEME}+{name}-steps-s0" for name in ("located", "solved-problems")}
    page.write(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for heading in ("Accuracy", "How it was restored", "Did the located steps matter?", "Run card"):
        assert heading in text
    assert f"restore-{RESTORED}" in text


def test_it_is_compared(old, tmp_path):
    files = export.write(summary.read(old), old, "inspect", tmp_path / "logs")
    (pair,) = compare.compare([logs.read(file) for file in files[:2]])
    assert (pair.paired.n, pair.paired.only_first, pair.paired.only_second) == (9, 1, 0)


@pytest.mark.usefixtures("no_generation")
def test_it_is_resumed_where_it_was(old):
    before = {file.name: file.read_bytes() for file in old.glob("*.jsonl")}
    with opened(old) as context:
        assert context.dir.fact(Placement).slots == context.batch_size == 12
        context.dir.keep_problems([*context.problems("test"), *context.problems("curate")])
        assert len(solving.solve(context, FULL, context.problems("test"), "test")) == 9
        assert "begun" not in said(context)
    assert {name: (old / name).read_bytes() for name in before if name != "bullets.jsonl"} | {"bullets.jsonl": b""} == {
        **before, "bullets.jsonl": b"",
    }  # fmt: skip
    found = summary.read(old)
    assert found.arms == [FULL], "arms count that the resumed run has not come to"


@pytest.mark.usefixtures("no_generation")
@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"locate": {"judge_budget": 5, "judge_timeout": 9.0}, "measure": {"problems": 3, "margin": 2.0, "noise_floor": True}}, True),
        ({"restore": {"steps": 11}}, False),
        ({"curate": {"bullets": 1}}, False),
    ],
)
def test_a_changed_recipe_redoes_what_depends_on_it_and_operational_keys_nothing(old, changes, counts):
    with opened(old) as context:
        solving.solve(context, FULL, context.problems("test"), "test")
    with opened(old, changes) as context:
        label = f"{FULL}: grades, test"
        assert (label in json.loads((old / "manifest.json").read_text())["stages"]) == counts
        assert ("the recipe has changed" in said(context)) != counts
        solving.solve(context, FULL, context.problems("test"), "test")  # does not depend on any of these
        assert label in json.loads((old / "manifest.json").read_text())["stages"]


def quantized(context: Context) -> None:
    for scheme in context.schemes:
        pipeline.quantize(context, scheme)


def test_an_interrupted_requantized_run_shows_no_old_record(old, monkeypatch):
    """The quantizer makes another checkpoint than it did; the run is stopped while that solves the test problems."""
    whole, stream = quantizer.quantize, LocalEngine.generate
    before = {kind: lines(old, kind) for kind in ("traces", "grades", "faults", "bullets")}

    def other(parent, scheme, texts, out):
        layers = whole(parent, scheme, texts, out)
        (out / "generation_config.json").write_text((out / "generation_config.json").read_text() + " ")
        return layers

    def stopped(engine, texts, **options):
        for number, one in enumerate(stream(engine, texts, **options)):
            if number == 4:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(quantizer, "quantize", other)
    monkeypatch.setattr(LocalEngine, "generate", stopped)
    with opened(old) as context, pytest.raises(KeyboardInterrupt):
        pipeline.run(context)
    fresh = [json.loads(line) for line in lines(old, "traces") if line not in before["traces"]]
    assert [one["arm"] for one in fresh] == [SCHEME] * 4
    found = summary.read(old)
    assert found.arms == [FULL]
    assert {trace.made_by for trace in found.traces[SCHEME].values()} == {fresh[0]["made_by"]}
    assert (len(found.traces[SCHEME]), found.faults, found.bullets) == (4, {}, {})
    assert set(summary.figures(found)["arms"]) == {FULL}
    assert not found.facts.all(Control) and not found.facts.all(Tuned) and not found.facts.all(Damage)
    assert lines(old, "bullets") == []
    assert (old / "bullets.jsonl.superseded").read_bytes().splitlines() == before["bullets"]
    for kind in ("traces", "grades", "faults"):
        assert set(before[kind]) <= set(lines(old, kind)), "old records are kept, though they do not count"


def test_a_checkpoint_that_is_not_what_its_record_says_is_made_again_and_said(old):
    with opened(old) as context:
        quantized(context)
        made = context.dir.fact(Quantized, SCHEME).checkpoint
    file = old / SCHEME / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:100]):
        file.write_bytes(damaged)
        with opened(old) as context:
            quantized(context)
            assert f"{SCHEME}: its checkpoint differs from the recorded one; it is made again" in said(context)
            assert (context.digest(SCHEME), file.read_bytes()) == (made, content)
    with opened(old) as context:
        quantized(context)
        assert "made again" not in said(context)


@pytest.mark.filterwarnings("ignore:.*damaged line")
@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_lines_of_every_kind_are_made_again(old, damage):
    with opened(old) as context:  # as the whole run would have them on this machine
        stages(context)
    kinds = {kind: lines(old, kind) for kind in ("traces", "grades", "faults", "bullets")}
    for kind, of in kinds.items():
        chosen = next(line for line in of if b'"arm":"full"' in line or kind == "bullets")
        other = b"" if damage == "lost" else chosen[: len(chosen) // 2] + b"\n"
        (old / f"{kind}.jsonl").write_bytes(b"".join(other if line == chosen else line + b"\n" for line in of))
    facts = (old / "facts.jsonl").read_bytes().splitlines(keepends=True)
    fact = next(i for i, line in enumerate(facts) if b'"fact":"damage"' in line)
    facts[fact] = b"" if damage == "lost" else b"{" + facts[fact]
    (old / "facts.jsonl").write_bytes(b"".join(facts))
    (old / "notes" / f"damage-{SCHEME}.json").unlink()
    with opened(old) as context:
        stages(context)
        assert context.dir.fact(Damage, SCHEME).tokens == 570
    for kind, of in kinds.items():
        assert sorted(lines(old, kind)) == sorted(of), kind
    assert lines(old, "bullets") == kinds["bullets"], "bullets are not in their order"


def stages(context: Context) -> None:
    """Stages that make each kind of record, in their order."""
    test = context.problems("test")
    quantized(context)
    full, low = (solving.solve(context, arm, test, "test") for arm in (FULL, SCHEME))
    margins.damage(context, SCHEME, test, full)
    locating.locate(context, SCHEME, solving.regressions(context, SCHEME, test), full, low, "test")
    rounds.bullets(context, SCHEME)
    pipeline.locate_own(context, test, full)


def test_a_card_says_which_versions_a_run_was_begun_with_and_which_it_went_on_with(old):
    for name in ("torch", "numpy"):
        card = json.loads((old / "notes" / "card.json").read_text())
        card["versions"][name] = "0.1"
        (old / "notes" / "card.json").write_text(json.dumps(card))
    with opened(old) as context:
        pipeline.keep_card(context)
        now = pipeline.card(context).versions
        kept = context.dir.fact(Card)
        assert (kept.versions["torch"], kept.later[0]["torch"], kept.later[0]["numpy"]) == ("0.1", now["torch"], now["numpy"])
        assert f"this run was started with torch 0.1 (now {now['torch']}), numpy 0.1" in said(context)
        pipeline.keep_card(context)
        assert context.dir.fact(Card) == kept


def test_who_only_reports_changes_nothing(old, tmp_path):
    shutil.copytree(old, tmp_path / "copy")
    summary.figures(summary.read(old))
    for file in (tmp_path / "copy").rglob("*"):
        assert file.is_dir() or (old / file.relative_to(tmp_path / "copy")).read_bytes() == file.read_bytes()
