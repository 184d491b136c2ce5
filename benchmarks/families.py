"""Every causal family of transformers through every step of the command line, on tiny random checkpoints. Writes docs/results/families.md.

python benchmarks/families.py                          # the families that are promised, then all others; continues where it stopped
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

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "families.md"
WORK = ROOT / "runs" / "families"
TOKENIZER = WORK / "tokenizer"
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["llmcompressor", "peft", "transformers", "stepmend.cli", "stepmend.context"])
"""Processes that start at once: forked from one that has imported the libraries."""


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


PROMISED = words(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 olmo2 granite cohere2 smollm3 glm4 starcoder2 gpt_neox opt falcon gpt2 "
    "mixtral qwen3_moe olmoe deepseek_v3 gpt_oss lfm2 falcon_h1 qwen3_next mamba2 gemma3 qwen2_vl"
)
"""Families that must work in full or be refused with a reason. All others of transformers' causal mapping follow them."""
LIMIT = 900.0
"""Seconds that one family may take."""
LARGEST = 20_000_000
"""Parameters of a checkpoint that counts as small."""
STEPS, RATE, KNOWN = 1200, 3e-3, 0.92
"""Steps of training at most, learning rate, and the share of tokens said right at which a model has learned enough: not all of it."""
OUTLIER = 10.0
"""How much larger some input columns are than the others."""
TRAIN, TEST, TOKENS = 176, 2, 24
"""Problems to tune on, problems to report, and tokens of a solution at most."""

SMALL: dict[str, int] = {
    **dict.fromkeys(words("hidden_size n_embd d_model dim embed_dim word_embed_proj_dim embedding_size decoder_hidden_size emb_dim"), 64),
    **dict.fromkeys(words("intermediate_size ffn_hidden_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_ff d_inner"), 128),
    **dict.fromkeys(words("moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(words("num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_decoder_layers"), 2),
    **dict.fromkeys(words("num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"), 4),
    **dict.fromkeys(words("num_key_value_heads num_kv_heads linear_num_key_heads"), 2),
    **dict.fromkeys(words("head_dim global_head_dim linear_key_head_dim linear_value_head_dim qk_rope_head_dim qk_nope_head_dim"), 16),
    **dict.fromkeys(words("v_head_dim mamba_d_state mamba_d_head state_size ssm_state_size mamba_head_dim time_step_rank"), 16),
    **dict.fromkeys(words("num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads mamba_n_heads"), 4),
    **dict.fromkeys(words("num_experts_per_tok moe_topk moe_k num_experts_per_token experts_per_token"), 2),
    **dict.fromkeys(words("n_group topk_group mamba_n_groups n_groups first_k_dense_replace n_shared_experts"), 1),
    **dict.fromkeys(words("q_lora_rank kv_lora_rank rotary_dim lru_width mamba_d_ssm"), 32),
    **dict.fromkeys(words("max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length"), 512),
    **{"sliding_window": 128, "full_attention_interval": 2, "block_size": 512, "depth": 2},
}
"""What a configuration's number becomes, by its name."""
OWN: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"time_step_rank": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "mamba": {"time_step_rank": 4},
    "phi": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_head": 32},
    "recurrent_gemma": {"num_hidden_layers": 3},
    **{name: {"num_key_value_heads": 4} for name in words("deepseek_v3 deepseek_v32 axk1 axk2 minicpm3 youtu glm4_moe_lite glm_moe_dsa")},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "qwen_sparse_attention"]},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 357, "num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": 357, "hidden_size_per_layer_input": 16},
    "longcat_flash": {"expert_ffn_hidden_size": 64, "num_key_value_heads": 4},
    **{name: {"bos_token_id": 2} for name in ("cwm", "mllama_text_model", "modernbert-decoder")},
    **{name: {"layer_types": ["linear_attention", "full_attention"]} for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
}
"""Further configuration that single families need to be consistent."""


def small(kind: Any, family: str, vocabulary: int) -> Any:
    """A configuration of a class, with small numbers."""
    defaults = kind().to_dict()
    special = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    values: dict[str, Any] = {
        key: value for key, value in SMALL.items() if isinstance(defaults.get(key), int) or key in ("head_dim", "n_inner")
    }
    values = {key: value for key, value in (values | special).items() if key in defaults} | OWN.get(family, {})
    for key, part in kind.sub_configs.items():
        if hasattr(part, "model_type") and part.model_type:
            values[key] = small(part, part.model_type, vocabulary).to_dict()
    return kind(**values)


def build(family: str, vocabulary: int) -> Any:
    """A random model of a family, float32."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    torch.manual_seed(0)
    names = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    kind, config = getattr(transformers, names[family]), small(CONFIG_MAPPING[family], family, vocabulary)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters: its configuration calls its widths otherwise")
    return with_outliers(kind(config).float())


def with_outliers(model: Any) -> Any:
    """The model with every 32nd input column of its matrices ``OUTLIER`` times as large, as real models' are: rounding in groups costs them
    something, however well they have learned."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and parameter.shape[-1] >= 64 and "embed" not in name and "head" not in name:
                parameter[..., ::32] *= OUTLIER
    return model


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


def walk(family: str, work: Path) -> dict[str, Any]:
    """Take one family through every step: what each said, and the traceback of what failed."""
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
        made = build(family, len(tokenizer))
        teach(made.train(), tokenizer)
        made.to(torch.bfloat16).save_pretrained(model)
        tokenizer.save_pretrained(model)

    def checked(schemes: tuple[str, ...]) -> str:
        return verb("check", str(model), *[part for one in schemes for part in ("--scheme", one)])

    built = attempt("build", make)
    both = SYMMETRIC if built and "symmetric" in checked(BOTH) else BOTH
    if built and attempt("check", lambda: checked(both)):
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
    """``not built``, ``refused`` before work, ``lost nothing`` and so was not restored, ``fails`` or ``works``."""
    if said.get("build") != "works":
        return "not built"
    if said.get("check", "works") != "works":
        return "refused" if ": " in said["check"] and not said["check"].split(":")[0].endswith("Error") else "fails"
    if said["load"] == "works" and said["codes, scales and norms by distill"].startswith("nothing was restored"):
        return "lost nothing"
    return "works" if all(line == "works" for line in said.values()) else "fails"


def one(family: str) -> None:
    """A family in this process; its result is kept, and what it says on the screen is not shown."""
    import gc
    import shutil
    import tempfile

    gc.freeze()  # what the libraries hold need not be looked through again each time that a model is given back
    start, null = time.perf_counter(), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory() as folder:
        found = walk(family, Path(folder))
        if os.environ.get("FAMILIES_KEEP"):
            shutil.copytree(folder, WORK / f"{family}-kept", dirs_exist_ok=True)
    keep(found | {"seconds": round(time.perf_counter() - start, 1)})


def keep(found: dict[str, Any]) -> None:
    """Write a family's result."""
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / f"{found['family']}.json").write_text(json.dumps(found, indent=1) + "\n")


def attend(family: str, again: bool) -> dict[str, Any]:
    """Run a family in a separate process with a time limit, or return its earlier result."""
    file = WORK / f"{family}.json"
    if again or not file.exists():
        file.unlink(missing_ok=True)
        child = CONTEXT.Process(target=one, args=(family,))
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
and so by `run`, before any work.

"""


def page(found: list[dict[str, Any]], known: int) -> str:
    """The page, in Markdown, on what was found so far; ``known`` is how many types there are."""
    import importlib.metadata as metadata

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "llmcompressor", "compressed-tensors", "torch"))
    parts = [f"{versions}; one CPU thread. {len(found)} types were walked; transformers' causal mapping has {known}.\n"]
    for verdict, title in (
        ("works", "Works"),
        ("refused", "Refused before work"),
        ("lost nothing", "Quantized and measured, lost nothing, and so was not restored"),
        ("fails", "Fails"),
        ("not built", "Not built small"),
    ):
        mine = [one for one in found if one["verdict"] == verdict]
        parts.append(f"## {title}: {len(mine)}\n")
        if verdict == "works":
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
    parser.add_argument("--jobs", type=int, default=1, help="families at once")
    given = parser.parse_args()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = given.only or [*PROMISED, *([] if given.promised else sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*PROMISED}))]
    if not TOKENIZER.exists():
        from stepmend.models import reasoner

        reasoner.make_tokenizer().save_pretrained(TOKENIZER)
    found = []
    workers = ThreadPoolExecutor(given.jobs)
    for result in workers.map(partial(attend, again=given.again), names):
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
