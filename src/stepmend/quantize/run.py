"""Quantize a checkpoint with llm-compressor, calibrated on the parent's own traces, into a folder that vLLM loads."""

import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stepmend.models import causal, check, load, rounding
from stepmend.quantize import mappings, schemes
from stepmend.records import InputError
from stepmend.rundir import make_folder, write_text

BATCH = 16
"""Calibration batch size."""

PROBE = "Tom has 12 eggs and buys 30 more.\nStep 1: 12 + 30 = 42\n\\boxed{42}"
"""The text on which a checkpoint, reloaded, is compared with the quantizer's model."""
NEAR = {"32 bits": 1e-3, "16 bits": 5e-2, "rounded": 1e-1}
"""Maximum relative difference of logits from the quantizer's: with a rounded KV cache, a difference in the last bit can become a whole
step."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes by their names in a safetensors file."""
WHOLE = "_global_scale"
"""The end of the names of scales that stay float32: NVFP4's, one per tensor."""
EXPERT = re.compile(r"(.*\.experts\.\d+\.)(\w+)(\..*)")
"""The name of a tensor of one expert: what is before the part, the part, and what follows it."""


def linear_widths(folder: str) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every linear layer a scheme applies to, read from the configuration alone (no weights are loaded)."""
    found = check.layers_of(load.skeleton(load.config_of(folder)))
    return {layer.name: (layer.rows, layer.columns) for layer in found if layer.quantized}


def preflight(folder: str, scheme: schemes.Scheme) -> list[check.Layer]:
    """What becomes of every layer, before work starts. Raises InputError if the scheme does not suit the checkpoint."""
    config = load.config_of(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model: {folder} is quantized already; give its full-precision parent, and this one as --quantized")
    schemes.check_installed(scheme)
    model = load.skeleton(config)
    layers = check.layers_of(model)
    check.refuse(model, scheme, layers)
    scaled(model, scheme)
    return layers


def quantize(folder: str, scheme: schemes.Scheme, texts: list[str], out: Path, wide: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Write the quantized checkpoint of ``folder`` to ``out``, atomically. ``wide``: modules with more bits than the scheme's.

    Returns ``check.summary`` of its layers, and as ``codes`` how many linear layers hold codes in its files. ``texts`` are rendered prompts
    with the parent's own solutions. Raises InputError if the scheme does not suit the model, if calibration texts are missing, if a layer
    that should be quantized is not, or if the reloaded checkpoint differs.
    """
    layers = preflight(folder, scheme)
    if scheme.calibrated and not texts:
        raise InputError(f"scheme: {scheme.name} needs calibration, but there are no calibration texts")
    model, tokenizer = compress(folder, scheme, texts, wide)
    whole = {name for name, bits in (wide or {}).items() if bits == schemes.WHOLE}
    _check_codes(model, [layer for layer in layers if layer.name not in whole], scheme)
    made_TV = _logits(model, tokenizer)
    save(model, tokenizer, out, folder)
    del model
    load.free()
    _check_reload(made_TV, out, scheme, any(layer.why == check.EXPERTS for layer in layers))
    return {**check.summary(layers), "codes": sum(name.endswith("weight_scale") for name in load.tensor_names(out))}


def _logits(model: Any, tokenizer: Any) -> torch.Tensor:
    """Logits [T, V] of the probe text, inputs of linear layers not rounded."""
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    with torch.no_grad(), rounding.exact_inputs(model):
        return model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def _check_reload(made_TV: torch.Tensor, out: Path, scheme: schemes.Scheme, experts: bool) -> None:
    """Raises InputError, and keeps nothing, if the checkpoint's logits are not those of the model that the quantizer made."""
    loaded = load.load_model(str(out))
    # transformers makes experts dense in the dtype of their scales, which is a 16-bit one.
    share = NEAR["rounded" if scheme.kv_bits else "16 bits" if experts or loaded.dtype.itemsize == 2 else "32 bits"]
    error = float((_logits(loaded, load.load_tokenizer(str(out))) - made_TV).abs().max())
    if not error <= share * float(made_TV.abs().max()):
        shutil.rmtree(out)
        raise InputError(f"scheme: {scheme.name}: the reloaded checkpoint's logits are {error:.3g} off the quantizer's; please report it")


def _check_codes(model: Any, layers: list[check.Layer], scheme: schemes.Scheme) -> None:
    """Raises InputError if a layer that the scheme is for was left in full precision."""
    held = {name for name, module in model.named_modules() if getattr(module, "quantization_scheme", None) is not None}
    for layer in layers:
        inside = layer.why == check.EXPERTS and any(name.startswith(f"{layer.name}.") for name in held)
        if layer.quantized and layer.name not in held and not inside:
            raise InputError(f"scheme: {scheme.name}: {layer.name} ({layer.kind}) was not quantized; llm-compressor does not support it")


def compress(folder: str, scheme: schemes.Scheme, texts: list[str], wide: Mapping[str, int] | None = None) -> tuple[Any, Any]:
    """The quantized model as llm-compressor leaves it, with its floats in the values that are saved; and the tokenizer."""
    from compressed_tensors.offload import remove_dispatch

    with tempfile.TemporaryDirectory() as scratch, _quiet(Path(scratch)):
        try:
            model, tokenizer = _oneshot(folder, scheme, texts, wide)
        except InputError:
            raise
        except Exception as error:  # llm-compressor and what it traces raise many kinds
            if load.out_of_memory(error):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(f"scheme: {scheme.name} cannot be made from this model; llm-compressor says {first}") from error
        remove_dispatch(model)  # else what is rounded below are copies on the GPU
    _round_to_storage(model, folder)
    return model, tokenizer


def save(model: Any, tokenizer: Any, out: Path, parent: str) -> None:
    """Write what ``compress`` made, in the compressed-tensors format and the parent's dtype. The model in memory is compressed too."""
    dtype = model.config.dtype
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    alone = [name for name, module in linear if getattr(module, "quantization_scheme", None) is None]

    def fill(part: Path) -> None:
        part = part.resolve()  # what follows changes the working directory
        with tempfile.TemporaryDirectory() as scratch, _quiet(Path(scratch)):
            model.save_pretrained(part, save_compressed=True)
        names, kept = _expert_names(model), _parents_dtypes(parent)
        for file in part.glob("*.safetensors"):
            _store(file, dtype, names, kept)
        index = part / "model.safetensors.index.json"
        if index.exists() and names:
            held = json.loads(index.read_text())
            held["weight_map"] = {_renamed(name, names): file for name, file in held["weight_map"].items()}
            write_text(index, json.dumps(held, indent=2) + "\n")
        config = json.loads((part / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        # llm-compressor writes names as they are in the file; transformers looks for those of its modules.
        config["quantization_config"]["ignore"] = sorted({*config["quantization_config"]["ignore"], *alone})
        write_text(part / "config.json", json.dumps(config, indent=2) + "\n")
        tokenizer.save_pretrained(part)
        (part / "recipe.yaml").unlink(missing_ok=True)  # llm-compressor's own; ours says more

    make_folder(out, fill)


def _oneshot(folder: str, scheme: schemes.Scheme, texts: list[str], wide: Mapping[str, int] | None) -> tuple[Any, Any]:
    from datasets import Dataset
    from llmcompressor import oneshot  # pyright: ignore[reportPrivateImportUsage]

    dtype = "auto" if torch.cuda.is_available() else torch.float32
    model = load.pretrained(folder, dtype=dtype)
    causal.check(model)
    tokenizer = load.load_tokenizer(folder)
    recipe = schemes.recipe_of(scheme, _left_alone(model), scaled(load.skeleton(load.config_of(folder)), scheme), wide)
    arguments: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "recipe": recipe}
    if scheme.calibrated:
        # Rows of similar length together, each batch cut to its shortest: no padding enters the statistics.
        rows = sorted((tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts), key=len)
        data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        # Shuffled samples give other codes for the same seed.
        arguments |= {"dataset": data, "num_calibration_samples": len(texts), "shuffle_calibration_samples": False}
        arguments |= {"max_seq_length": len(rows[-1]), "batch_size": min(BATCH, len(rows)), "data_collator": "truncation"}
    else:
        arguments |= {"pipeline": "datafree"}
    with _in_float32() if scheme.method == "autoround" and dtype is torch.float32 else nullcontext():
        oneshot(**arguments)
    return model, tokenizer


@contextmanager
def _in_float32() -> Iterator[None]:
    """Context manager: AutoRound computes in float32; by default it converts layers to bfloat16 on a CPU, and leaves them so."""
    from llmcompressor.modifiers.autoround import base as imported

    base: Any = imported
    original = base.AutoRound
    base.AutoRound = partial(original, amp=False)
    try:
        yield
    finally:
        base.AutoRound = original


def scaled(model: Any, scheme: schemes.Scheme) -> list[tuple[str, tuple[str, ...]]]:
    """The scaling mappings of AWQ or SmoothQuant for a model on the meta device; empty for other methods.

    Raises InputError if there is nothing to scale.
    """
    if scheme.method not in schemes.SCALED:
        return []
    with tempfile.TemporaryDirectory() as scratch, _quiet(Path(scratch)):
        return [(one.smooth, one.balance) for one in mappings.of(model, scheme.method)]


def _left_alone(model: Any) -> list[str]:
    return check.ignored(check.layers_of(model))


def _round_to_storage(model: Any, folder: str) -> None:
    """Convert the floats that are saved to the parent's dtype, so that the low-bit checkpoint has the expected size.

    The weights themselves stay in the dtype that was computed in: their codes are taken at saving, against the rounded scales. What
    scales of 8 bits are multiplied or divided by stays float32, as their format has it.
    """
    dtype = getattr(load.config_of(folder), "dtype", None) or torch.float32
    kept = _parents_dtypes(folder)
    quantized = {f"{name}.weight" for name, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point and name not in quantized and not name.endswith(WHOLE):
            tensor.copy_(tensor.to(kept.get(name, dtype)))
    model.config.dtype = dtype


def _store(file: Path, dtype: torch.dtype, names: dict[str, str], kept: dict[str, torch.dtype]) -> None:
    """Rewrite a safetensors file with each float in its parent's dtype (``kept``), or in ``dtype``; and experts by their family's names."""
    from safetensors.torch import load_file, save_file

    tensors = {_renamed(name, names): t for name, t in load_file(file).items()}
    rounded = {name: t for name, t in tensors.items() if t.dtype == torch.float32 and not name.endswith(WHOLE)}
    tensors |= {name: t.to(kept.get(name, dtype)) for name, t in rounded.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _parents_dtypes(folder: str) -> dict[str, torch.dtype]:
    """The dtype of every float tensor in a checkpoint's files, by its name there."""
    from safetensors import safe_open

    found: dict[str, torch.dtype] = {}
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                kind = FLOATS.get(opened.get_slice(name).get_dtype())
                found |= {name: kind} if kind else {}
    return found


def _expert_names(model: Any) -> dict[str, str]:
    """The names of an expert's parts in the family's files, if they differ from llm-compressor's (Mixtral: w1)."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    found: dict[str, str] = {}
    for one in get_checkpoint_conversion_mapping(model.config.get_text_config().model_type) or []:
        if isinstance(one, WeightConverter) and all("experts" in pattern for pattern in one.source_patterns):
            own = [pattern.removesuffix(".weight").rpartition(".")[2] for pattern in one.source_patterns]
            target = one.target_patterns[0] if isinstance(one.target_patterns, list) else one.target_patterns
            usual = ["gate_proj", "up_proj"] if target.endswith("gate_up_proj") else ["down_proj"] if target.endswith("down_proj") else []
            if len(usual) == len(own):
                found |= dict(zip(usual, own, strict=True))
    return {usual: own for usual, own in found.items() if usual != own}


def _renamed(name: str, names: dict[str, str]) -> str:
    """A tensor's name with the part of an expert called as in ``names``."""
    match = EXPERT.fullmatch(name)
    return f"{match[1]}{names.get(match[2], match[2])}{match[3]}" if match else name


@contextmanager
def _quiet(scratch: Path) -> Iterator[None]:
    """llm-compressor logs to the screen and into the working directory, and pins memory if there is no accelerator to pin it for."""
    from loguru import logger

    with redirect_stdout(io.StringIO()):  # its logger takes hold of standard output when it is imported
        from llmcompressor.pipelines.cache import IntermediatesCache
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")  # or every call of it enables its log again
    with suppress(ValueError, TypeError):
        logger.level("METRIC", no=38)  # it logs at this level even where, disabled, it has not made it
    for library in ("torch.fx", "autoround"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("llmcompressor", "compressed_tensors"):
        logger.disable(library)
    pin, here = IntermediatesCache._pin_intermediate, Path.cwd()
    if not torch.cuda.is_available():
        IntermediatesCache._pin_intermediate = classmethod(lambda cls, intermediate: None)  # pyright: ignore
    os.chdir(scratch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(here)
        IntermediatesCache._pin_intermediate = pin
