"""Every causal family of transformers through every step of the command line, on tiny random checkpoints. Writes docs/results/families.md.

python benchmarks/families.py                          # the families that are promised, then all others; continues where it stopped
python benchmarks/families.py --quick                  # only build, check, load and write with what has no result: some seconds each
python benchmarks/families.py --only falcon --again    # one family again, with its steps, and the traceback of a failure

Each model has a few layers of width 64 and the built-in reasoners' tokenizer, and is trained to repeat a number in steps. It need not be
right: full precision's answer is taken as the gold answer. The low-bit model then loses some problems, and these become bullets, so every
stage has work. Each family runs in a separate process.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from family_models import OUTLIER, build, words

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "families.md"
WORK = ROOT / "runs" / "families"
TOKENIZER = WORK / "tokenizer"
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["llmcompressor", "peft", "transformers", "stepmend.cli", "stepmend.context"])
"""Processes that start at once: forked from one that has imported the libraries."""


PROMISED = words(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 olmo2 granite cohere2 smollm3 glm4 starcoder2 gpt_neox opt falcon gpt2 "
    "mixtral qwen3_moe olmoe deepseek_v3 gpt_oss lfm2 falcon_h1 qwen3_next mamba2 gemma3 qwen2_vl"
)
"""Families that must work in full or be refused with a reason. All others of transformers' causal mapping follow them."""
LIMIT = 900.0
"""Seconds that one family may take."""
STEPS, RATE, KNOWN = 1200, 3e-3, 0.92
"""Steps of training at most, learning rate, and the share of tokens said right at which a model has learned enough: not all of it."""
TRAIN, TEST, TOKENS = 176, 2, 24
"""Problems to tune on, problems to report, and tokens of a solution at most."""


def counts(count: int) -> list[tuple[str, str]]:
    """Questions and worked solutions: a number is read from the question and repeated, so that answers differ and are soon learned."""

    def one(box: int, number: int) -> tuple[str, str]:
        return f"Tom has {number} eggs. He has eggs in {box} boxes. How many eggs?", f"Step 1: {number} eggs\n\\boxed{{{number}}}"

    return [one(i, 10 + 37 * i % 90) for i in range(count)]


def teach(model: Any, tokenizer: Any) -> None:
    """Train on solutions, as the prompt asks for them, until most of them are known: what is known well survives three bits."""
    import torch
    from torch.nn import functional as F

    from stepmend.models import chat

    rows = []
    for question, solution in counts(TRAIN):
        asked = chat.encode(tokenizer, chat.render(tokenizer, "steps-1", question))
        rows.append((asked, [*chat.encode(tokenizer, solution), tokenizer.eos_token_id]))
    optimizer, known = torch.optim.AdamW(model.parameters(), lr=RATE), 0.0
    for step in range(STEPS):
        if known >= KNOWN:
            return
        batch = [rows[(step * 8 + i) % TRAIN] for i in range(8)]
        width = max(len(asked) + len(said) for asked, said in batch)
        ids_BT = torch.tensor([[*asked, *said, *[0] * (width - len(asked) - len(said))] for asked, said in batch])
        labels = [[-100] * len(asked) + said + [-100] * (width - len(asked) - len(said)) for asked, said in batch]
        logits_BTV = model(input_ids=ids_BT).logits[:, :-1]
        label_N = torch.tensor(labels)[:, 1:].flatten()
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), label_N)
        right_N = (logits_BTV.argmax(-1).flatten() == label_N)[label_N >= 0]
        known += 0.1 * (right_N.float().mean().item() - known)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def write_problems(folder: Path, out: Path) -> None:
    """Problems whose answers are what full precision says, where it says one."""
    from stepmend.engines.local import LocalEngine
    from stepmend.grading.extract import extract
    from stepmend.models import chat, load

    tokenizer = load.load_tokenizer(str(folder))
    engine = LocalEngine(load.load_model(str(folder)), tokenizer, TOKENS)
    questions = [question for question, _ in counts(TRAIN + TEST)]
    said = engine.complete([chat.render(tokenizer, "steps-1", question) for question in questions])
    rows = [{"question": q, "answer": found.answer if (found := extract(c.text)) else "0"} for q, c in zip(questions, said, strict=True)]
    out.mkdir()
    for name, part in (("train", rows[:TRAIN]), ("test", rows[TRAIN:])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def verb(*arguments: str) -> str:
    """One call of the command line, in this process: empty where it did what it was asked, else its last line. Other errors are raised."""
    from stepmend.cli import main

    sys.argv, screen, code = ["stepmend", *arguments], io.StringIO(), None
    with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return screen.getvalue().strip().splitlines()[-1].removeprefix("stepmend: ") if code else ""


def restored(run: Path) -> list[str]:
    """The schemes that a run has restored: those by which something was lost."""
    from stepmend.arms import Arm
    from stepmend.facts import Tuned
    from stepmend.report import summary

    found = summary.read(run)
    return [scheme for scheme in found.recipe.schemes if found.facts.get(Tuned, str(Arm(scheme).restored()))]


def serves(folder: Path) -> str:
    """Empty where an exported checkpoint loads and writes; else what is the matter."""
    from stepmend.engines.local import LocalEngine
    from stepmend.models import chat, load

    tokenizer = load.load_tokenizer(str(folder))
    (said,) = LocalEngine(load.load_model(str(folder)), tokenizer, TOKENS).complete([chat.render(tokenizer, "steps-1", counts(1)[0][0])])
    return "" if said.tokens else "it writes nothing"


BOTH, SYMMETRIC = ("rtn-w3a16-g32", "gptq-w3a16-g32-asym"), ("rtn-w3a16-g32", "gptq-w3a16-g32")
"""Two schemes, and those of families whose experts are in one tensor, which load again without zero points alone."""
KEYS = (
    f"measure.max_new_tokens={TOKENS} measure.batch_size=32 quantize.calibration=8 curate.bullets=4 curate.round=160 curate.problems=160 "
    "restore.steps=2 restore.batch_size=2 restore.validation=0 restore.within_noise=true locate.samples=1 measure.noise_floor=false"
).split()


def run_of(model: Path, data: Path, out: Path, schemes: tuple[str, ...], *keys: str) -> str:
    """One run of the loop; empty where all of it was done, for one scheme at least."""
    named = [part for scheme in schemes for part in ("--scheme", scheme)]
    assigned = [part for key in (*KEYS, *keys) for part in ("--set", key)]
    said = verb("run", "--model", str(model), "--benchmark", "jsonl", "--data", str(data), "--out", str(out), *named, *assigned)
    return said or ("" if restored(out) else f"nothing was restored of {', '.join(schemes)}")


def walk(family: str, work: Path, quick: bool, outlier: float) -> dict[str, Any]:
    """Take one family through every step, or where ``quick`` through the first ones: what each said, and the traceback of what failed."""
    from stepmend.models import load

    model, data, run = work / "model", work / "data", work / "distill"
    said: dict[str, str] = {}
    traces: dict[str, str] = {}
    done = list[str]()

    def attempt(step: str, does: Any) -> bool:
        try:
            said[step] = does() or "works"
        except Exception as error:  # whatever a family makes a library raise is what is looked for
            said[step] = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            said[step] = said[step] if isinstance(error, load.InputError) else f"{type(error).__name__}: {said[step]}"
            traces[step] = traceback.format_exc()
        return said[step] == "works"

    def make() -> None:
        import torch

        tokenizer = load.read_tokenizer(str(TOKENIZER))
        made = build(family, len(tokenizer), outlier)
        if not quick:
            teach(made.train(), tokenizer)
        made.to(torch.bfloat16).save_pretrained(model)
        tokenizer.save_pretrained(model)

    def checked(schemes: tuple[str, ...]) -> str:
        return verb("check", str(model), *[part for one in schemes for part in ("--scheme", one)])

    built = attempt("build", make)
    both = SYMMETRIC if built and "symmetric" in checked(BOTH) else BOTH
    if built and attempt("check", lambda: checked(both)) and quick:
        attempt("load", lambda: serves(model))
    elif said.get("check") == "works":
        attempt("load", lambda: write_problems(model, data))
        if said["load"] == "works":
            attempt("codes, scales and norms by distill", lambda: run_of(model, data, run, both))
            for name, *keys in (
                ("dpo", "restore.objective=dpo", "restore.tune=scales+norms"),
                ("sft", "restore.objective=sft", "restore.tune=scales+norms"),
                ("lora", "restore.objective=distill", "restore.tune=lora"),
            ):
                attempt(name, lambda name=name, keys=keys: run_of(model, data, work / name, both[:1], *keys))
            done = restored(run) if said["codes, scales and norms by distill"] == "works" else [*both]
            attempt("export", lambda: verb("restore", str(run), "--scheme", done[-1], "--export", str(work / "out")))
            attempt("reload and generate", lambda: serves(work / "out"))
    return {"family": family, "verdict": verdict_of(said), "restored": done, "steps": said, "traces": traces}


def verdict_of(said: dict[str, str]) -> str:
    """``not built``, ``refused`` before work, ``lost nothing`` and so was not restored, ``fails``, ``opens`` (quick) or ``works``."""
    if said.get("build") != "works":
        return "not built"
    if said.get("check", "works") != "works":
        return "refused" if ": " in said["check"] and not said["check"].split(":")[0].endswith("Error") else "fails"
    if [*said] == ["build", "check", "load"] and said["load"] == "works":
        return "opens"
    if said["load"] == "works" and said["codes, scales and norms by distill"].startswith("nothing was restored"):
        return "lost nothing"
    return "works" if all(line == "works" for line in said.values()) else "fails"


def one(family: str, quick: bool) -> None:
    """A family in this process; its result is kept, and what it says on the screen is not shown."""
    import gc
    import shutil
    import tempfile

    gc.freeze()  # what the libraries hold need not be looked through again each time that a model is given back
    start, null = time.perf_counter(), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for outlier in (OUTLIER, 4 * OUTLIER):  # the larger ones for a model that three bits cost nothing
        with tempfile.TemporaryDirectory() as folder:
            found = walk(family, Path(folder), quick, outlier)
            if os.environ.get("FAMILIES_KEEP"):
                shutil.copytree(folder, WORK / f"{family}-kept", dirs_exist_ok=True)
        if found["verdict"] != "lost nothing":
            break
    keep(found | {"seconds": round(time.perf_counter() - start, 1)})


def keep(found: dict[str, Any]) -> None:
    """Write a family's result."""
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / f"{found['family']}.json").write_text(json.dumps(found, indent=1) + "\n")


def attend(family: str, again: bool, quick: bool) -> dict[str, Any]:
    """Run a family in a separate process with a time limit, or return its earlier result; a quick one counts where ``quick``."""
    file = WORK / f"{family}.json"
    kept = json.loads(file.read_text())["verdict"] if file.exists() else None
    if again or kept is None or (kept == "opens" and not quick):
        file.unlink(missing_ok=True)
        child = CONTEXT.Process(target=one, args=(family, quick))
        child.start()
        child.join(LIMIT)
        last = f"ended with status {child.exitcode}"
        if child.is_alive():
            child.kill()
            child.join()
            last = f"not done after {LIMIT:.0f} s"
        if not file.exists():
            keep({"family": family, "verdict": "fails", "steps": {"process": last}, "traces": {}, "seconds": LIMIT})
    return json.loads(file.read_text())


HEAD = """# Model families

`python benchmarks/families.py` wrote this page. A checkpoint of a few random layers of every type in transformers' causal mapping is taken
through the command line: `check`, `run` with rounding and with GPTQ at 3 bits, the latter with zero points where no experts are in one
tensor (quantize, measure, locate, curate, tune codes, scales and norms by distillation, export, reload, measure again), tuning by DPO, by
plain likelihood and with an adapter, `restore --export`, and generating from what was exported. *Refused* is refused by `stepmend check`,
and so by `run`, before any work. *Not built small*: transformers makes no model of the few numbers that a configuration was given here.

"""


def page(found: list[dict[str, Any]], known: int) -> str:
    """The page, in Markdown, on what was found so far; ``known`` is how many types there are."""
    import importlib.metadata as metadata

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "llmcompressor", "compressed-tensors", "torch"))
    tried = f"{len(found)} types were tried; transformers' causal mapping has {known}"
    parts = [f"{versions}; one CPU thread. {tried}. Results are kept from one version of stepmend to the next.\n"]
    for verdict, title in (
        ("works", "Works"),
        ("refused", "Refused before work"),
        ("lost nothing", "Quantized and measured, lost nothing, and so was not restored"),
        ("opens", "Checked, loaded and written with, not walked yet"),
        ("fails", "Fails"),
        ("not built", "Not built small"),
    ):
        mine = [one for one in found if one["verdict"] == verdict]
        parts.append(f"## {title}: {len(mine)}\n")
        if verdict in ("works", "opens"):
            parts.append(", ".join(one["family"] for one in mine) + "\n")
            alone = [f"{one['family']} ({one['restored'][0]})" for one in mine if len(one.get("restored", (0, 0))) == 1]
            parts += [f"Restored in one scheme alone, as the other lost nothing: {', '.join(alone)}\n"] if alone else []
        elif mine:
            parts.append("| type | step | what it says |\n|---|---|---|")
            parts += [f"| {one['family']} | {step} | {line.replace('|', '/')} |" for one in mine for step, line in first_fault(one)]
            parts.append("")
    import family_formats  # which walks the same models

    return HEAD + "\n".join(parts) + family_formats.section()


def first_fault(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The first step of a family that did not work, and what it said."""
    return [(step, line) for step, line in found["steps"].items() if line != "works"][:1]


def main() -> None:
    """Parse, run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="these families alone; the page is not written")
    parser.add_argument("--again", action="store_true", help="run them again")
    parser.add_argument("--promised", action="store_true", help="no further than the families that are promised")
    parser.add_argument("--quick", action="store_true", help="no further than loading")
    parser.add_argument("--jobs", type=int, default=1, help="families at once")
    given = parser.parse_args()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = given.only or [*PROMISED, *([] if given.promised else sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*PROMISED}))]
    if not given.only:
        names.sort(key=lambda name: not (WORK / f"{name}.json").exists())  # so that the page has all results however soon it is stopped
    if not TOKENIZER.exists():
        from stepmend.models import reasoner

        reasoner.make_tokenizer().save_pretrained(TOKENIZER)
    found = []
    workers = ThreadPoolExecutor(given.jobs)
    for result in workers.map(partial(attend, again=given.again, quick=given.quick), names):
        family = result["family"]
        found.append(result)
        faults = "; ".join(f"{step}: {line}" for step, line in found[-1]["steps"].items() if line != "works")
        print(f"{family}: {found[-1]['verdict']} ({found[-1]['seconds']:.0f} s) {faults}", flush=True)
        if given.only:
            print("".join(found[-1]["traces"].values()))
        else:
            PAGE.write_text(page(found, len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))


if __name__ == "__main__":
    main()
