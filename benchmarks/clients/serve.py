"""A real server as a judge: 'transformers serve' with the built-in reasoner, whose answers are nonsense to the question.

python benchmarks/clients/serve.py    # the server's venv and the runs lie in runs/clients; writes docs/results/judges.md
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from run import ROOT, WORK, venv  # pyright: ignore[reportAttributeAccessIssue]

from stepmend.models.reasoner import CHECKPOINTS

SMALL = ["measure.problems=25", "curate.problems=30", "curate.round=30", "restore.steps=2", "measure.noise_floor=false"]
SMALL += ["locate.judge_timeout=300"]  # one answer at a time, on a CPU
SHORT = 32
"""Tokens after which the server ends an answer: nonsense has no end of its own."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}: see {WORK / 'serve.log'}")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(1)
    raise SystemExit("the server did not start within two minutes")


def command(*arguments: str | Path) -> str:
    """What a command of ours prints, both streams."""
    asked = [sys.executable, "-m", "stepmend.cli", *map(str, arguments)]
    done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return done.stdout.replace(f"{ROOT}/", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STEPMEND_DATA", ROOT.parent / "shared" / "data")))
    data, port = parser.parse_args().data, free_port()
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    model = WORK / "judge"
    shutil.copytree(CHECKPOINTS / "qwen2", model, dirs_exist_ok=True)
    settings_file = model / "generation_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"max_new_tokens": SHORT}))
    start = "from transformers.cli.transformers import main; main()"
    serve = [venv("serving", "transformers[serving]") / "python", "-c", start, "serve", model]
    with (WORK / "serve.log").open("wb") as log, subprocess.Popen([*serve, "--port", str(port)], stdout=log, stderr=log) as server:
        try:
            wait(f"http://127.0.0.1:{port}/health", server)
            judge = ["--judge", f"nonsense={model}@http://127.0.0.1:{port}/v1"]
            settings = [part for value in SMALL for part in ("--set", value)]
            out = WORK / f"judged-{port}"
            run = command("run", "--quick", "--scheme", "rtn-w3a16", *judge, *settings, "--out", out)
            labelled = data / "processbench" / "gsm8k.json"
            answers = WORK / f"judgements-{port}.jsonl"
            bench = command("bench", "locate", "--data", labelled, "--locator", "judge", *judge, "--limit", "4", "--answers", answers)
        finally:
            server.terminate()
    shown = [line for line in (run + bench).replace(str(port), "PORT").replace(str(data), "DATA").splitlines() if line.strip()]
    kept = [line.rstrip() for line in shown if line.startswith("judge ") or " solutions: " in line or "alpha" in line]
    page = ["# A real server that answers nonsense", "", "`python benchmarks/clients/serve.py` wrote this page.", ""]
    page += [
        "The built-in reasoner behind `transformers serve` is asked to judge. It can only solve story problems, so nothing it says is the"
    ]
    page += ["JSON that was asked for: no vote is cast, the run goes on, and says so.", "", "```", *kept, "```", ""]
    (ROOT / "docs" / "results" / "judges.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
