"""Sharing a restored checkpoint: what the card says to the hub, and one commit to a hub that a test plays."""

import json
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from typer.testing import CliRunner

from stepmend import InputError, Recipe
from stepmend.cli import app, running
from stepmend.report import card, summary
from stepmend.report.push import Hub
from tests.report.test_restoring import BETTER, FULL, LOW, RESTORED, SCHEME, checkpoint, found
from tests.scripted_hub import ScriptedHub

assert checkpoint  # a fixture
TOKEN = "hf_scriptedTokenThatNobodyMaySee"
RUN = found({"full": FULL, SCHEME: LOW, RESTORED: FULL}, {f"effects-{RESTORED}": BETTER})
JUDGE = "big=gpt-x@https://judge.example/secret/v1"


def of(**recipe):
    return replace(RUN, recipe=Recipe.make({"schemes": [SCHEME], **recipe}))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ScriptedHub() as played:
        monkeypatch.setenv("HF_ENDPOINT", played.url)
        yield played


def head(text):
    return ModelCard(text).data.to_dict()


def test_the_card_says_what_the_hub_reads():
    run, parent = of(model="Qwen/Qwen2.5-0.5B", benchmark="gsm8k"), card.Parent("Qwen/Qwen2.5-0.5B", {"license": "mit"})
    data = head(card.text(run, SCHEME, RESTORED, parent))
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ("Qwen/Qwen2.5-0.5B", "quantized", "mit")
    assert (data["datasets"], data["library_name"], data["pipeline_tag"]) == (["openai/gsm8k"], "transformers", "text-generation")
    assert {"stepmend", "compressed-tensors", SCHEME} == {*data["tags"]}
    tuned = of(model="Qwen/Qwen2.5-0.5B", benchmark="aime", curate={"benchmark": "math"})
    names = ["HuggingFaceH4/aime_2024", "nlile/hendrycks-MATH-benchmark", "HuggingFaceH4/MATH-500"]
    assert head(card.text(tuned, SCHEME, RESTORED))["datasets"] == names


def test_the_parent_is_what_the_recipe_and_its_own_card_say(tmp_path):
    assert card.parent_of(of(model="Qwen/Qwen2.5-0.5B")) == card.Parent("Qwen/Qwen2.5-0.5B")
    assert card.parent_of(RUN) == card.Parent()
    assert "base_model" not in head(card.text(RUN, SCHEME, RESTORED)), "a built-in reasoner is not on the hub"
    named = {"license": "other", "license_name": "qwen", "license_link": "https://x.example/LICENSE"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(named)}---\n# Model\n")
    assert card.parent_of(of(model=str(tmp_path))) == card.Parent(None, named)
    for broken in ("---\n[\n---\n", "no card", "---\nlicense: [a]\n---\n", "\xff"):
        (tmp_path / "README.md").write_bytes(broken.encode("latin-1"))
        assert card.parent_of(of(model=str(tmp_path))) == card.Parent()


def test_the_paired_table_is_the_runs():
    text = card.text(RUN, SCHEME, RESTORED)
    against = summary.against_full(RUN)[SCHEME]
    row = f"| full → {SCHEME} | 30 | 30 | 0 | 0 | {summary.span(against)} | {against['mcnemar_p']:.2g} |"
    assert row in text
    assert f"| {SCHEME} → {RESTORED} | 30 | 0 | 30 | 0 |" in text


def test_what_was_measured_lies_beside_the_card_without_a_problems_text(checkpoint, tmp_path):
    asked = {name: problem.model_copy(update={"question": "How many apples?"}) for name, problem in RUN.problems.items()}
    run = replace(of(model="Qwen/Qwen2.5-0.5B", benchmark="math"), problems=asked)
    card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=False)
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / "out/.eval_results/math.yaml").read_text()))
    assert (entry.dataset_id, entry.value) == ("HuggingFaceH4/MATH-500", 100.0)
    files = {file.name: json.loads(file.read_text()) for file in (tmp_path / "out/every_eval_ever").iterdir()}
    assert set(files) == {"full.json", f"{SCHEME}.json", f"{SCHEME}-restored.json"}
    scores = {name: of["evaluation_results"][0]["score_details"]["score"] for name, of in files.items()}
    assert scores == {"full.json": 1.0, f"{SCHEME}.json": 0.5, f"{SCHEME}-restored.json": 1.0}
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or "How many apples" not in file.read_text()
    card.export(RUN, checkpoint, SCHEME, tmp_path / "story", guard=False)
    assert not (tmp_path / "story/.eval_results").exists(), "story is no data set on the hub"


def test_neither_folders_of_the_machine_nor_addresses_are_shared(tmp_path):
    home = tmp_path / "home" / "ann"
    (home / "my-model").mkdir(parents=True)
    run = of(
        model=str(home / "my-model"), benchmark="jsonl", data=str(home / "problems"),
        curate={"benchmark": "gsm8k", "data": str(home / "gsm8k")},
        locate={"judges": [JUDGE], "completer": JUDGE, "reliabilities": str(home / "rates.json")},
    )  # fmt: skip
    text = card.text(run, SCHEME, RESTORED)
    for private in (str(tmp_path), "secret", "judge.example"):
        assert private not in text
    assert "my-model" in text
    assert '"big=gpt-x"' in text


def test_a_push_is_what_an_export_writes(hub, checkpoint, tmp_path):
    hub.cards["Qwen/Qwen2.5-0.5B"] = {"license": "apache-2.0"}
    run = of(model="Qwen/Qwen2.5-0.5B", benchmark="gsm8k")
    pushed = Hub("me/my-w3")
    parent = pushed.completed(card.parent_of(run))
    assert parent == card.Parent("Qwen/Qwen2.5-0.5B", {"license": "apache-2.0"})
    card.export(run, checkpoint, SCHEME, tmp_path / "out", guard=False, parent=parent)
    url = pushed.push(tmp_path / "out", private=True)
    assert url == f"{hub.url}/me/my-w3/commit/{'a' * 40}"
    local = {str(file.relative_to(tmp_path / "out")): file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert hub.files == {"me/my-w3": local}
    assert {"README.md", "model.safetensors", ".eval_results/gsm8k.yaml"} < local.keys()
    assert hub.private == {"me/my-w3": True}
    assert {token for _, token in hub.seen} <= {f"Bearer {TOKEN}", ""}
    assert not any(TOKEN.encode() in content for content in (*local.values(), *hub.bodies))


@pytest.mark.parametrize(
    ("part", "status", "message", "said"),
    [
        ("repos/create", 401, "Invalid username or password.", "HTTP 401: the token is not valid"),
        ("repos/create", 403, f"{TOKEN} may not", "HTTP 403: the token may not write there: *** may not"),
        ("preupload", 400, "no such file", "HTTP 400: no such file"),
        ("/commit/", 413, "too large", "HTTP 413"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(hub, tmp_path, part, status, message, said):
    hub.fails[part] = (status, message)
    (tmp_path / "README.md").write_text("# Model\n")
    with pytest.raises(InputError) as raised:
        Hub("me/my-w3").push(tmp_path, private=True)
    line = str(raised.value)
    assert line.startswith("push: me/my-w3: ") and said in line and line.endswith("the same command pushes again")
    assert TOKEN not in line and "\n" not in line
    assert not hub.files.get("me/my-w3")
    assert (tmp_path / "README.md").exists()


def test_a_hub_that_is_not_there_and_one_that_does_not_know_the_parent(hub, monkeypatch, tmp_path):
    assert Hub("me/my-w3").completed(card.Parent("no/such")) == card.Parent("no/such")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="push: me/my-w3: "):
        Hub("me/my-w3").push(tmp_path, private=True)


@pytest.mark.parametrize("name", ["me/my/w3", "", "me/my w3", "../w3", "me/w3--x"])
def test_what_is_no_name_on_the_hub_is_said_before_any_work(hub, name):
    with pytest.raises(InputError, match="is not a hub name"):
        Hub(name)
    assert not hub.seen


def test_nothing_is_pushed_unless_it_is_asked_for(hub, checkpoint, tmp_path, monkeypatch):
    """By the command line: exports alone ask the hub for nothing; with --push one repository is made, private unless it may be public."""
    (checkpoint / "recipe.json").write_text(RUN.recipe.model_dump_json())
    monkeypatch.setattr(running, "_run", lambda *_: None)
    monkeypatch.setattr(summary, "read", lambda folder: RUN)

    def restore(*options):
        return CliRunner().invoke(app, ["restore", str(checkpoint), *map(str, options)])

    done = restore("--export", tmp_path / "out", "--guard")
    assert (done.exit_code, hub.seen) == (0, [])
    done = restore("--push", "me/w3", "--base-model", "Qwen/Qwen2.5-0.5B", "--license", "mit", "--public", "--guard")
    assert done.exit_code == 0, done.output
    assert f"Pushed: {hub.url}/me/w3/commit/" in done.output
    assert (hub.private, TOKEN in done.output) == ({"me/w3": False}, False)
    data = head(hub.files["me/w3"]["README.md"].decode())
    assert (data["base_model"], data["license"]) == ("Qwen/Qwen2.5-0.5B", "mit")
    assert sorted(file.name for file in checkpoint.iterdir()) == ["recipe.json", f"{SCHEME}-restored"], "nothing is left in the run"
    hub.fails["/commit/"] = (500, "no")
    done = restore("--push", "me/w3", "--export", tmp_path / "kept")
    assert isinstance(done.exception, InputError)
    assert (tmp_path / "kept/model.safetensors").exists(), "what was exported stays where the hub fails"
    for options, said in (
        (("--public",), "--public needs --push"),
        (("--license", "mit"), "--license needs --export DIR or --push NAME"),
        (("--push", "me/w3", "--base-model", "/home/x"), "is not a hub name"),
    ):
        assert said in str(restore(*options).exception)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "nobody is logged in" in str(restore("--push", "me/w3").exception)
