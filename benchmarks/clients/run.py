"""Other tools' real logs through stepmend compare: lm-evaluation-harness and Inspect solve story problems with a built-in reasoner.

python benchmarks/clients/run.py [--problems 150]    # venvs and logs lie in runs/clients; writes docs/results/clients.md
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from stepmend.benchmarks import story
from stepmend.models.reasoner import CHECKPOINTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "runs" / "clients"
SCHEME = "rtn-w3a16-g128"


def venv(name: str, package: str) -> Path:
    """A venv of its own for a client; what is installed here already (torch, transformers) is seen from it."""
    folder = WORK / f"venv-{name}"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", package], check=True)
        (folder / "ready").touch()
    return folder / "bin"


def lm_eval(model: Path, out: Path) -> Path:
    """lm-eval's samples of one model."""
    if not list(out.rglob("samples_*.jsonl")):
        command: list[str | Path] = [venv("lm-eval", "lm-eval") / "lm_eval", "--model", "hf", "--tasks", "story", "--include_path", HERE]
        command += ["--model_args", f"pretrained={model},dtype=float32", "--apply_chat_template", "--batch_size", "50"]
        subprocess.run([*command, "--device", "cpu", "--log_samples", "--output_path", out], check=True, cwd=WORK)
    return next(out.rglob("samples_*.jsonl"))


def inspect(model: Path, out: Path) -> Path:
    """Inspect's log of one model."""
    if not list(out.glob("*.eval")):
        task, problems = f"{HERE / 'story_inspect.py'}@story", f"problems={WORK / 'problems.jsonl'}"
        command: list[str | Path] = [venv("inspect", "inspect-ai") / "inspect", "eval", task, "-T", problems, "--model", "hf/local"]
        command += ["-M", f"model_path={model}", "-M", "device=cpu", "-M", "batch_size=50", "-M", "do_sample=false", "--max-tokens", "180"]
        subprocess.run([*command, "--max-connections", "50", "--log-dir", out, "--display", "none"], check=True, cwd=WORK)
    return next(out.glob("*.eval"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=150, help="story problems, a third of each level")
    count = parser.parse_args().problems // 3
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    problems = [p for level in story.LEVELS for p in itertools.islice(story.problems("test", level, seed=0), count)]
    lines = [json.dumps({"id": p.id, "question": p.question, "answer": p.answer, "level": p.level}) + "\n" for p in problems]
    (WORK / "problems.jsonl").write_text("".join(lines))
    models = {"full": CHECKPOINTS / "qwen2", SCHEME: WORK / SCHEME}
    stepmend = [sys.executable, "-m", "stepmend.cli"]
    if not models[SCHEME].exists():
        subprocess.run([*stepmend, "quantize", "builtin:qwen2", SCHEME, models[SCHEME]], check=True)
    page = ["# Other tools' logs", "", "`python benchmarks/clients/run.py` wrote this page.", ""]
    for name, client in (("lm-evaluation-harness", lm_eval), ("Inspect", inspect)):
        logs = [client(model, WORK / client.__name__ / arm) for arm, model in models.items()]
        names = [option for arm in models for option in ("--name", arm)]
        command = [*stepmend, "compare", *logs, *names, "--out", WORK / f"{client.__name__}.html"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        page += [f"## {name}", "", "```", *shown.replace(f"{ROOT}/", "").rstrip().splitlines(), "```", ""]
    file = ROOT / "docs" / "results" / "clients.md"
    file.write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
