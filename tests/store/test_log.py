"""Logs of records: nothing is lost because it cannot be read, and nothing is parsed that is not asked for."""

import json

import pytest

from stepmend import Grade, InputError, Recipe
from stepmend.facts import Curated, Damage, Fact, Facts, Gate
from stepmend.records import Bullet, Judgement, Problem
from stepmend.rundir import RunDir
from stepmend.store import manifest
from stepmend.store.log import Log, MadeLog, set_aside

RECIPE = Recipe.make({})


def grade(problem: str, made_by: str = "a", arm: str = "full") -> Grade:
    return Grade(problem=problem, arm=arm, made_by=made_by, outcome="correct")


@pytest.fixture
def file(tmp_path):
    MadeLog(tmp_path / "grades.jsonl", Grade).append([grade("p1"), grade("p2"), grade("q1", "b"), grade("p3")])
    return tmp_path / "grades.jsonl"


def spoil(file, number: int, change) -> bytes:
    """Change one line of a file; what it is then."""
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    file.write_bytes(b"".join(lines))
    return lines[number]


DAMAGES = {
    "cut": lambda line: line[:25] + b"\n",
    "no text": lambda line: b"\xff\xfe\x00\n",
    "another value": lambda line: line.replace(b'"correct"', b'"perhaps"'),
    "another field": lambda line: line[:-2] + b',"mood":"good"}\n',
    "a lost field": lambda line: line.replace(b',"outcome":"correct"', b""),
    "empty": lambda line: b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_line_that_cannot_be_read_is_moved_aside_as_it_is(file, damage):
    bad = spoil(file, 1, DAMAGES[damage])
    with pytest.warns(UserWarning, match=r"1 damaged line\(s\) moved to grades.jsonl.rejected; their content is generated again"):
        assert set(MadeLog(file, Grade).of("a")) == {"p1", "p3"}
    assert file.with_name("grades.jsonl.rejected").read_bytes() == bad
    assert [json.loads(line)["problem"] for line in file.read_bytes().splitlines()] == ["p1", "q1", "p3"]
    assert set(MadeLog(file, Grade).of("a")) == {"p1", "p3"}, "said once"


def test_every_damaged_line_is_kept_and_none_twice(file):
    bad = [spoil(file, number, lambda line: line[:20] + b"\n") for number in range(4)]
    with pytest.warns(UserWarning, match="4 damaged"):
        MadeLog(file, Grade)
    assert file.with_name("grades.jsonl.rejected").read_bytes() == b"".join(bad)
    assert file.read_bytes() == b""


def test_who_only_reads_falls_back_on_the_earlier_record_of_a_damaged_one(file):
    MadeLog(file, Grade).append([grade("p2"), grade("p2")])
    for number in (4, 5):
        spoil(file, number, DAMAGES["another value"])
    before = file.read_bytes()
    with pytest.warns(UserWarning, match="damaged line"):
        found = MadeLog(file, Grade, keep=False).of("a")
        assert found["p2"] == grade("p2")
        assert set(found) == {"p1", "p2", "p3"}
    assert file.read_bytes() == before


def test_a_line_that_a_crash_left_in_both_files_is_moved_once(file):
    first, *_ = file.read_bytes().splitlines(keepends=True)
    aside = file.with_name("aside.jsonl")
    aside.write_bytes(first)
    set_aside(file, aside, lambda start, line: b'"made_by":"a"' in line)
    assert [json.loads(line)["problem"] for line in aside.read_bytes().splitlines()] == ["p1", "p2", "p3"]
    assert [json.loads(line)["problem"] for line in file.read_bytes().splitlines()] == ["q1"]


def test_who_only_reads_a_run_changes_nothing_of_it(file):
    spoil(file, 1, DAMAGES["another value"])
    before = file.read_bytes()
    with pytest.warns(UserWarning, match="left out"):
        assert set(MadeLog(file, Grade, keep=False).of("a")) == {"p1", "p3"}
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["grades.jsonl"]


@pytest.mark.parametrize("log", [Log, MadeLog])
def test_records_of_a_newer_version_are_refused_and_left(file, log):
    spoil(file, 1, lambda line: line.replace(b'"version":1', b'"version":2'))
    before = file.read_bytes()
    with pytest.raises(InputError, match="holds records of a newer version of stepmend"):
        list(log(file, Grade))
    assert file.read_bytes() == before


def test_only_what_is_asked_for_is_parsed(file, monkeypatch):
    parsed = []
    whole = MadeLog.parsed
    monkeypatch.setattr(MadeLog, "parsed", lambda log, line: parsed.append(json.loads(line)["problem"]) or whole(log, line))
    log = MadeLog(file, Grade)
    assert parsed == []
    assert log.of("b")["q1"] == grade("q1", "b")
    assert parsed == ["q1"]


def test_what_is_given_out_goes_on_with_the_log(file):
    log = MadeLog(file, Grade)
    mine = log.of("a")
    log.append([grade("p0")])
    assert list(mine) == ["p1", "p2", "p3", "p0"]
    log.settle("a", ["p0", "p1", "p2", "p3"])
    assert [mine[name].problem for name in ("p3", "p0", "p2")] == ["p3", "p0", "p2"]
    assert [json.loads(line)["problem"] for line in file.read_bytes().splitlines()] == ["p0", "p1", "q1", "p2", "p3"]


def test_the_last_record_of_a_problem_counts(file):
    log = MadeLog(file, Grade)
    log.append([grade("p2").model_copy(update={"outcome": "wrong"})])
    assert [log.of("a")["p2"].outcome, MadeLog(file, Grade).of("a")["p2"].outcome] == ["wrong", "wrong"]
    assert len(log.of("a")) == 3


def test_what_comes_behind_a_torn_line_is_whole(file):
    with file.open("ab") as stream:
        stream.write(b'{"version":1,"problem":"p')
    with pytest.warns(UserWarning, match="1 damaged"):
        log = MadeLog(file, Grade)
    with file.open("ab") as stream:
        stream.write(b'{"version":1,"problem":"p')  # torn while the log is open
    log.append([grade("p4")])
    with pytest.warns(UserWarning, match="1 damaged"):
        assert "p4" in MadeLog(file, Grade).of("a")


def problem(name: str, answer: str = "2") -> Problem:
    return Problem(id=name, benchmark="jsonl", split="test", level="all", question=f"{name}?", answer=answer)


def test_lost_and_damaged_problems_are_written_again_and_those_of_another_recipe_kept_beside(tmp_path):
    with RunDir(tmp_path / "run", RECIPE) as run:
        run.keep_problems([problem("p1"), problem("p2"), problem("p3")])
        file = tmp_path / "run" / "problems.jsonl"
        before = file.read_bytes()
        spoil(file, 1, lambda line: line[:9] + b"\xff\n")
        with pytest.warns(UserWarning, match="1 damaged"):
            run.keep_problems([problem("p1"), problem("p2"), problem("p3")])
        assert file.read_bytes() == before
        spoil(file, 2, lambda line: b"")
        run.keep_problems([problem("p1"), problem("p2"), problem("p3")])
        assert file.read_bytes() == before
        run.keep_problems([problem("p1"), problem("p4")])
        assert [one.id for one in run.load(Problem)] == ["p1", "p4"]
    kept = (tmp_path / "run" / "problems.jsonl.superseded").read_bytes().splitlines()
    assert sorted(json.loads(line)["id"] for line in kept) == ["p2", "p3"]


def test_damaged_facts_are_moved_aside_and_those_of_no_known_kind_left(tmp_path):
    class Other(Fact):
        fact: str = "other"

    with RunDir(tmp_path, RECIPE) as run:
        for fact in (Curated(arm="w4", bullets=1, problems=2), Other(arm="w4"), Gate(arm="w4", why="so")):
            run.keep(fact)
    file = tmp_path / "facts.jsonl"
    bad = spoil(file, 0, lambda line: line[:30] + b"\n")
    with pytest.warns(UserWarning, match="1 damaged"), RunDir(tmp_path, RECIPE) as run:
        assert (run.fact(Curated, "w4"), run.fact(Gate, "w4").why) == (None, "so")
        assert run.fact(Other, "w4") == Other(arm="w4")
    assert (tmp_path / "facts.jsonl.rejected").read_bytes() == bad


def test_a_fact_with_other_fields_does_not_count_and_stays():
    facts = Facts([{"fact": "curated", "arm": "w4", "bullets": 1, "problems": 2}, {"fact": "curated", "arm": "w4", "bullets": "many"}])
    with pytest.warns(UserWarning, match="a fact of kind curated cannot be read"):
        assert facts.get(Curated, "w4").bullets == 1
    assert facts.all(Damage) == {}


def test_a_stage_with_other_inputs_cuts_the_list_there(tmp_path):
    kept = manifest.Manifest(tmp_path)
    for label, made_by in (("a", "1"), ("b", "2"), ("c", "3")):
        assert kept.announce(label, made_by)
    assert not kept.announce("b", "2")
    assert manifest.Manifest(tmp_path).digests == {"1", "2", "3"}
    assert kept.announce("b", "4")
    assert manifest.read(tmp_path) == {"a": "1", "b": "4"}
    (tmp_path / manifest.NAME).write_text('{"version": 1, "stag')
    with pytest.raises(InputError, match=r"manifest\.json: damaged; 'stepmend run"):
        manifest.read(tmp_path)
    with pytest.warns(UserWarning, match=r"manifest\.json: damaged, moved to manifest\.json\.rejected"):
        assert manifest.Manifest(tmp_path).digests == frozenset()
    assert (tmp_path / "manifest.json.rejected").read_text() == '{"version": 1, "stag'


def test_the_list_of_a_newer_version_is_refused_and_left(tmp_path):
    file = tmp_path / manifest.NAME
    file.write_text('{"version": 2, "stages": {}, "more": 1}')
    for read in (manifest.read, manifest.Manifest):
        with pytest.raises(InputError, match="made by a newer version"):
            read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [manifest.NAME]


def bullet(name: str, made_by: str, arm: str = "w4") -> Bullet:
    return Bullet(
        problem=name, arm=arm, made_by=made_by, prompt="q", prefix="", chosen="c", rejected="r", continuation="", rejected_rest="",
        solution="c", place=(0, 1), step=0, error_class=None,
    )  # fmt: skip


def test_the_dataset_of_bullets_holds_those_that_count_and_the_others_come_back_when_they_do(tmp_path):
    with RunDir(tmp_path, RECIPE) as run:
        for label, made_by in (("w4: quantized", "1"), ("w4: curated", "old"), ("w3: curated", "other")):
            run.announce(label, made_by)
        run.append([bullet("p1", "old"), bullet("p2", "other", "w3"), bullet("p3", "old")])
        file = tmp_path / "bullets.jsonl"
        before = file.read_bytes()
        run.announce("w4: quantized", "2")
        assert file.read_bytes() == b"", "what may have been made from the old checkpoint is in the dataset"
        run.announce("w4: curated", "new")
        run.append([bullet("p1", "new")])
        assert [one.made_by for one in run.load(Bullet)] == ["new"]
        for label, made_by in (("w4: quantized", "1"), ("w4: curated", "old"), ("w3: curated", "other")):
            run.announce(label, made_by)
        assert sorted(file.read_bytes().splitlines()) == sorted(before.splitlines())
        assert run.load(Bullet, "old") == [bullet("p1", "old"), bullet("p3", "old")]
    assert [json.loads(line)["made_by"] for line in (tmp_path / "bullets.jsonl.superseded").read_bytes().splitlines()] == ["new"]


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_other_kinds_of_records_are_kept_aside_too(tmp_path):
    with RunDir(tmp_path, RECIPE) as run:
        run.append([Judgement(asked=name, judge="j", model="m", content="c", tokens=1) for name in "ab"])
        bad = spoil(tmp_path / "judgements.jsonl", 0, lambda line: line[:-4] + b"\n")
        assert [one.asked for one in run.load(Judgement)] == ["b"]
    assert (tmp_path / "judgements.jsonl.rejected").read_bytes() == bad


def test_of_several_digests_the_last_record_in_the_file_counts(file):
    log = MadeLog(file, Grade)
    log.append([grade("p1", "b").model_copy(update={"outcome": "wrong"})])
    log.append([grade("p3", "a")])
    both = log.of("b", "a")
    assert {name: (of.made_by, of.outcome) for name, of in both.items()} == {
        "p1": ("b", "wrong"), "p2": ("a", "correct"), "q1": ("b", "correct"), "p3": ("a", "correct"),
    }  # fmt: skip
