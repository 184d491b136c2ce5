"""The command line: light to start, one clear line and exit code 2 for what a user can put right."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from stepmend import Recipe
from stepmend.cli import HEAVY
from stepmend.models.reasoner import CHECKPOINTS
from tests.command import stepmend
from tests.conftest import WITHOUT_HEAVY

ROOT = Path(__file__).parents[1]


def refused(*arguments: str, **options) -> str:
    """The one line with which a command refuses."""
    done = stepmend(*arguments, **options)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def without_heavy(code: str) -> subprocess.CompletedProcess:
    """Run code in a Python where the heavy libraries cannot be imported."""
    return subprocess.run([sys.executable, "-c", WITHOUT_HEAVY + code], capture_output=True, text=True, check=False)


def test_the_core_needs_no_heavy_library(tmp_path):
    done = without_heavy("import stepmend, sys\nfrom stepmend.cli import main\nsys.argv = ['stepmend', '--help']\nmain()")
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--out", "{out}"),
        ("run", "--benchmark", "gsm8k", "--out", "{out}"),
        ("check", "builtin:qwen2"),
        ("check", "organization/model"),
        ("quantize", "builtin:qwen2", "rtn-w4a16-g128", "{out}"),
    ],
)
def test_what_needs_an_extra_says_which(tmp_path, arguments):
    given = ["stepmend", *(argument.format(out=tmp_path / "x") for argument in arguments)]
    done = without_heavy(f"import sys\nfrom stepmend.cli import main\nsys.argv = {given!r}\nmain()")
    assert done.returncode == 2
    assert "pip install 'stepmend[run]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_every_library_of_the_extra_is_known():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.split("[<>=]", line)[0].replace("-", "_") for line in extras["run"]} == HEAVY


def test_help_teaches():
    assert "Examples" in stepmend("run", "--help").stdout
    assert "gptq-w4a16-g128" in stepmend("schemes").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--scheme", "gptq-w9a16-g128"), "gptq is offered as"),
        (("--model", "./nowhere"), "./nowhere does not exist"),
        (("--model", "{empty}"), "holds no model"),
        (("--model", "{cut}"), "model.safetensors is truncated or damaged"),
        (("--model", "builtin:gpt5"), "allowed: builtin:qwen2, builtin:llama"),
        (("--set", "restore.stepps=3"), "unknown key restore.stepps; allowed: tune"),
        (("--set", "restore.steps=-3"), "restore.steps = -3: input should be greater than or equal to 0"),
        (("--set", "restore.steps"), "key=value is needed"),
        (("--benchmark", "gsm9k"), "benchmark = 'gsm9k': input should be 'story', 'gsm8k'"),
        (("--benchmark", "gsm8k", "--data", "{tmp}/none"), "no such file or folder"),
        (("{yaml}",), "not valid YAML"),
        (("{tmp}/none.yaml",), "cannot read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("schemes: [rtn-w4a16\nseed: 1\n")
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in (CHECKPOINTS / "qwen2").iterdir():
        (cut / file.name).write_bytes(file.read_bytes())
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    places = {"empty": tmp_path / "empty", "cut": cut, "yaml": tmp_path / "bad.yaml", "tmp": tmp_path}
    given = [argument.format(**places) for argument in arguments]
    assert line in refused("run", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "--seeds", "1" + "0" * 23), "--seeds"),
        (("run", "--judge-budget", "-1"), "--judge-budget"),
        (("run", "--judge-budget", "nan"), "--judge-budget"),
        (("run", "--set", "restore.batch_size=1e99"), "restore.batch_size"),
        (("run", "--judge", "j=m@http://localhost:99999/v1"), "a port from 1 to 65535"),
        (("run", "--judge", "j=m@http://h.example/v1"), "plain http"),
        (("run", "--set", "locate.completer=j=m@http://h.example/v1"), "plain http"),
        (("bench", "locate", "--data", "{tmp}/a.jsonl", "--locator", "judge", "--judge", "j=m@http://h.example/v1"), "plain http"),
        (("bench", "locate", "--data", "{tmp}/a.jsonl", "--threshold", "nan"), "--threshold"),
        (("compare", "a", "b", "--threshold", "inf"), "--threshold"),
        (("compare", "a", "b", "--threshold", "1e99"), "--threshold"),
        (("align", "builtin:qwen2", "{tmp}/out", "--steps", "9" * 30), "--steps"),
        (("audit", "{tmp}", "--sample", "x" * 100_000), "--sample"),
    ],
)
def test_numbers_and_addresses_are_bounded(tmp_path, arguments, line):
    (tmp_path / "a.jsonl").write_text('{"problem": "1 + 1?", "steps": ["2"], "label": -1}\n')
    said = refused(*(argument.format(tmp=tmp_path) for argument in arguments), cwd=tmp_path)
    assert line in said and len(said) < 420
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_out_of_another_model_is_refused(tmp_path):
    from stepmend import Recipe
    from stepmend.recipe import ROUNDED
    from stepmend.rundir import RunDir

    RunDir(tmp_path / "out", Recipe.make({"model": "builtin:llama", "schemes": ROUNDED})).close()  # the demo's model is the other one
    assert "belongs to another model (builtin:llama)" in refused("run", "--out", tmp_path / "out")
    assert "has not measured anything yet" in refused("report", tmp_path / "out")
    assert "holds no run" in refused("report", tmp_path / "none")


SOLVED = [{"id": i, "out": f"so \\boxed{{{i}}}", "gold": "1", "ok": i == 1} for i in range(4)]


def kept(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_grade_counts_and_keeps_every_grade(tmp_path):
    file = kept(tmp_path / "a.jsonl", [*SOLVED, {"out": "the answer is 1", "gold": "1"}, {"out": "nobody can tell", "gold": "1"}])
    done = stepmend("grade", file, "--answer-field", "out", "--gold-field", "gold", "--json", "--out", tmp_path / "grades.jsonl")
    counts = json.loads(done.stdout)
    assert [counts[name] for name in ("n", "correct", "wrong", "unscored")] == [6, 2, 3, 1]
    assert counts["strict"] == {"correct": 1, "wrong": 3, "unscored": 2}
    grades = [json.loads(line) for line in (tmp_path / "grades.jsonl").read_text().splitlines()]
    assert (grades[1]["outcome"], grades[1]["extracted"], grades[1]["form"]) == ("correct", "1", "boxed")
    assert (grades[5]["outcome"], grades[5]["reason"]) == ("unscored", "no_answer")


def test_a_path_is_no_markup(tmp_path):
    file, out = kept(tmp_path / "a.jsonl", SOLVED), tmp_path / "[w3]" / "[" / "grades.jsonl"
    done = stepmend("grade", file, "--answer-field", "out", "--gold-field", "gold", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "[w3]/[/grades.jsonl" in "".join(done.stdout.split())


def test_compare_needs_no_model_and_no_torch(tmp_path):
    first, second = kept(tmp_path / "full.jsonl", SOLVED), kept(tmp_path / "w3.jsonl", [{**row, "ok": False} for row in SOLVED])
    arguments = ["compare", first, second, "--correct-field", "ok", "--json", "--out", tmp_path / "page.html"]
    done = without_heavy(f"import sys\nsys.argv = {['stepmend', *map(str, arguments)]!r}\nmain()")
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(done.stdout)
    assert (pair["first"], pair["second"], pair["pairs"], pair["only_first"]) == ("full", "w3", 4, 1)
    assert "http" not in (tmp_path / "page.html").read_text().replace("http://www.w3.org", "")
    shown = stepmend("compare", first, second, "--correct-field", "ok", "--out", tmp_path / "page.html").stdout
    assert "No difference between w3 and full is shown" in shown


def test_what_cannot_be_graded_or_compared_is_one_line(tmp_path):
    file = kept(tmp_path / "a.jsonl", SOLVED)
    assert "no field 'text'; available: id, out, gold, ok" in refused("grade", file, "--answer-field", "text", "--gold-field", "gold")
    assert "two logs or more" in refused("compare", file)
    other = kept(tmp_path / "b.jsonl", [{**row, "id": f"x{row['id']}"} for row in SOLVED])
    assert "no problem in common" in refused("compare", file, other, "--correct-field", "ok", "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    fields = ("--answer-field", "out", "--gold-field", "gold")
    before = file.read_bytes()
    assert "is an input" in refused("grade", file, *fields, "--out", file)
    assert "is an input" in refused("compare", file, other, "--out", file)
    assert file.read_bytes() == before
    assert "is not a regular file" in refused("grade", file, *fields, "--out", tmp_path)
    assert "cannot write into" in refused("grade", file, *fields, "--out", file / "grades.jsonl")
    assert "given twice" in refused("compare", file, file)
    assert "--answer-field and --gold-field go together" in refused("compare", file, other, "--gold-field", "gold")
    assert "without --correct-field" in refused("compare", file, other, *fields, "--correct-field", "ok")
    assert "needs --judge" in refused("bench", "locate", "--data", file, "--judge-budget", "9")
    assert "Missing option '--gold-field'" in refused("grade", file, "--answer-field", "out")
    assert "No such option" in refused("grade", "--nonsense")
    kept(tmp_path / "empty.jsonl", [{"out": "1", "gold": " "}])
    assert "field 'gold' is empty in every record" in refused("grade", tmp_path / "empty.jsonl", *fields)


def test_quantize_does_not_overwrite(tmp_path):
    assert "exists already" in refused("quantize", "builtin:qwen2", "rtn-w4a16-g128", tmp_path)


def test_a_full_disk_is_one_line(tmp_path):
    """A file size limit stands for the full disk: the system call fails in the same place."""
    limited = [
        "bash",
        "-c",
        f"ulimit -f 200; exec {sys.executable} -m stepmend.cli quantize builtin:qwen2 rtn-w4a16-g128 {tmp_path / 'out'}",
    ]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert not any(tmp_path.iterdir())


def test_audit_of_a_run(finished_run, tmp_path):
    """The page is written beside the run's; what is no file of labels is one line. (The page itself: tests/report/test_audit.py.)"""
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    done = stepmend("audit", str(copy), "--sample", "5")
    assert done.returncode == 0, done.stderr
    assert "failed solutions" in done.stdout
    page = (copy / "audit.html").read_text()
    assert "rtn-w3a16" not in page
    assert "audit" in refused("audit", str(copy), "--score", str(copy / "recipe.json"))
    assert "--json needs --score" in refused("audit", str(copy), "--json")


def test_a_key_in_a_judge_s_address_is_refused_and_not_repeated(tmp_path):
    assert "hidden-key" not in refused("run", "--judge", "a=m@http://user:hidden-key@host/v1", "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_grade_says_first_that_a_run_is_broken(tmp_path):
    rows = [{"out": "so it is \\boxed{460} " * 1000, "gold": "460"}] * 6 + [{"out": "\\boxed{460}", "gold": "460", "why": None}]
    file = kept(tmp_path / "a.jsonl", [{"why": "length", **row} for row in rows])
    done = stepmend("grade", file, "--answer-field", "out", "--gold-field", "gold", "--finish-field", "why")
    lines = done.stdout.splitlines()
    assert lines[0] == "This run is broken: 6 of 7 texts loop. Its accuracy is not meaningful."
    assert "texts that loop: 6" in lines
    assert "texts that the limit cut off: 6" in lines


def test_compare_reads_arms_of_one_table(tmp_path):
    rows = [{"id": i, "model": model, "ok": model == "full" or i > 8} for model in ("full", "w4") for i in range(10)]
    file = kept(tmp_path / "a.jsonl", rows)
    done = stepmend("compare", file, "--arm-field", "model", "--correct-field", "ok", "--json", "--out", tmp_path / "c.html")
    (pair,) = json.loads(done.stdout)
    assert (pair["first"], pair["second"], pair["only_first"], pair["metrics"]["first"]) == ("full", "w4", 9, "ok")
    assert "two arms or more are needed" in refused(
        "compare", file, "--arm-field", "id", "--id-field", "model", "--correct-field", "ok", "--name", "a"
    )


@pytest.mark.parametrize(("part", "key", "name"), [("locate", "judges", "j"), ("locate", "completer", "j"), ("measure", "engines", "full")])
def test_an_address_in_a_run_s_folder_is_sent_no_key(tmp_path, part, key, name):
    spec = f"{name}=m@https://elsewhere.example/v1"
    recipe = Recipe.make({part: {key: spec if key == "completer" else [spec]}})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    line = refused("restore", tmp_path)
    assert line.endswith(
        f"has an address for {name} in its recipe; to allow sending it an API key, repeat it: --judge {name}=MODEL@BASE_URL"
    )
    assert "elsewhere" not in line


def test_ctrl_c_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "stepmend.cli", "run", "--quick", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 300
    while not (out / "traces.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stepmend: stopped; run the same command again to resume"
    assert "Traceback" not in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(tmp_path, encoding):
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps({"answer": "\\boxed{2}", "gold": "2"}) + "\n")
    options = {"env": {**os.environ, "PYTHONIOENCODING": encoding}}
    done = stepmend("grade", file, "--answer-field", "answer", "--gold-field", "gold", **options)
    assert done.returncode == 0, done.stderr
    assert stepmend("schemes", **options).returncode == 0


def test_control_characters_in_data_are_shown_and_not_obeyed(tmp_path):
    line = refused("run", "--model", "/no/\x1b[31msuch\x07model", "--out", tmp_path / "run")
    assert "\\x1b[31msuch\\x07model" in line
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", line)


def test_a_completer_that_is_not_there_is_said_before_any_work(tmp_path):
    line = refused("run", "--quick", "--set", "locate.completer=/no/model", "--out", tmp_path / "run")
    assert line.startswith("stepmend: completer: /no/model does not exist")
    assert not (tmp_path / "run").exists()


def test_check_says_what_would_be_done_and_run_refuses_the_same(tmp_path):
    done = stepmend("check", "builtin:qwen2", "--scheme", "rtn-w4a16-g128", "--scheme", "awq-w4a16-g128", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["quantized"], facts["tuned"], facts["left alone"]) == (28, 28, {"the head": 1})
    assert facts["memory"]["model"] >= 4 * 2_000_000
    assert facts["scaled"] == {"awq-w4a16-g128": 28}, "the reasoner has as many heads of values as of queries"
    assert facts["seconds"].keys() == {"quantize", "solve", "locate", "restore"}
    assert facts["seconds"]["solve"] > 0 and facts["assumed"]["problems"] == 900
    assert sum(layer["quantized"] for layer in facts["layers"]) == 28
    screen = " ".join(stepmend("check", "builtin:qwen2", "--scheme", "rtn-w4a16-g128").stdout.split())
    assert re.search(r"time, an estimate from a probe of [\d.]+ s on this machine under its present load", screen)
    assert re.search(r"solve [\d.]+ (s|min|h) \(per arm\), locate [\d.]+ (s|min|h)", screen)
    shutil.copytree(CHECKPOINTS / "qwen2", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"intermediate_size": 500}))
    line = refused("check", tmp_path / "odd", "--scheme", "rtn-w4a16-g128")
    assert "groups of 128 do not divide the 500 columns" in line
    given = ("--model", tmp_path / "odd", "--scheme", "rtn-w4a16-g128", "--out", tmp_path / "out")
    assert line == refused("run", *given)
    assert not (tmp_path / "out").exists()
