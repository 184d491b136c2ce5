"""A checkpoint that somebody else made goes through the whole loop, by the command line, and comes out in its own format."""

import json

import pytest
from safetensors.torch import load_file

from stepmend.models import load
from stepmend.models.reasoner import CHECKPOINTS
from tests.command import stepmend
from tests.formats import layouts

SMALL = [
    "--set", "measure.problems=12", "--set", "measure.batch_size=36", "--set", "curate.problems=216", "--set", "curate.round=108",
    "--set", "curate.bullets=8", "--set", "restore.steps=20", "--set", "restore.batch_size=4", "--set", "restore.within_noise=true",
    "--set", "restore.validation=0", "--set", "measure.noise_floor=false", "--set", "locate.own_failures=0",
]  # fmt: skip
KIND = layouts.Kind("gptq", bits=3, group=0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A GPTQ checkpoint of a built-in reasoner, named as somebody may, and a finished run that restores it."""
    home = tmp_path_factory.mktemp("given")
    layouts.make(str(CHECKPOINTS / "qwen2"), KIND, home / "Reasoner GPTQ+3bit")
    (home / "Reasoner GPTQ+3bit" / "README.md").write_text("---\nbase_model: someone/else\n---\n")
    done = stepmend("run", "--model", "builtin:qwen2", "--quantized", home / "Reasoner GPTQ+3bit", *SMALL, "--out", home / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "said.txt").write_text(done.stderr)
    return home


def test_it_is_measured_located_and_restored_under_its_folders_name(home):
    figures = json.loads(stepmend("report", home / "run", "--json").stdout)
    assert list(figures["schemes"]) == ["Reasoner-GPTQ-3bit"]
    said = (home / "said.txt").read_text()
    assert "Reasoner-GPTQ-3bit: gptq, 28 layers int3, a scale a row, zero points" in said
    assert "its card names someone/else as the base model, and not builtin:qwen2" in said
    restored = home / "run" / "Reasoner-GPTQ-3bit-restored"
    assert (restored / "config.json").read_bytes() == (home / "Reasoner GPTQ+3bit" / "config.json").read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (home / "Reasoner GPTQ+3bit", restored))
    changed = {name.rpartition(".")[2] for name in before if before[name].tolist() != after[name].tolist()}
    assert changed == {"qweight", "scales", "weight"}  # of norms
    assert not [name for name in (home / "run").glob("*/model.safetensors") if name.parent != restored]


def test_it_is_exported_in_its_own_format_with_a_card(home):
    done = stepmend("restore", home / "run", "--export", home / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it loads in GPTQModel, transformers with it, vLLM" in " ".join(done.stderr.split())
    card = (home / "out" / "README.md").read_text()
    assert "tags:\n- stepmend\n- gptq\n- Reasoner-GPTQ-3bit\n" in card
    assert "The checkpoint `Reasoner-GPTQ-3bit` (gptq), restored by stepmend on 8 bullets" in card
    assert json.loads((home / "out" / "config.json").read_text())["quantization_config"] == layouts.config_of(KIND)
    load.load_model(str(home / "out"))


def test_the_same_command_has_nothing_left_to_do(home):
    before = {file: file.stat().st_mtime_ns for file in (home / "run").glob("**/*.safetensors")}
    kept = (home / "run" / "traces.jsonl").read_bytes()
    done = stepmend("run", "--model", "builtin:qwen2", "--quantized", home / "Reasoner GPTQ+3bit", *SMALL, "--out", home / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {file: file.stat().st_mtime_ns for file in (home / "run").glob("**/*.safetensors")} == before
    assert (home / "run" / "traces.jsonl").read_bytes() == kept


def test_check_says_what_can_be_restored(home):
    done = stepmend("check", "builtin:qwen2", "--quantized", home / "Reasoner GPTQ+3bit", "--json")
    facts = json.loads(done.stdout)
    assert facts["schemes"] == []
    assert facts["given"]["Reasoner-GPTQ-3bit"]["layers"]["tuned"] == 28
    assert "quantize" not in facts["seconds"]


@pytest.mark.parametrize("verb", ["run", "check"])
def test_one_of_another_model_is_one_line_and_no_folder(home, tmp_path, verb):
    out = ["--out", tmp_path / "run"] if verb == "run" else []
    model = ["--model", "builtin:llama"] if verb == "run" else ["builtin:llama"]
    done = stepmend(verb, *model, "--quantized", home / "Reasoner GPTQ+3bit", *out)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("stepmend: quantized: ")
    assert not (tmp_path / "run").exists()


def test_an_adapter_does_not_go_with_what_is_made_dense(home, tmp_path):
    done = stepmend("run", "--quantized", home / "Reasoner GPTQ+3bit", "--set", "restore.tune=lora", "--out", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == "stepmend: restore.tune = lora: adapters need a compressed-tensors checkpoint; Reasoner-GPTQ-3bit is gptq"
