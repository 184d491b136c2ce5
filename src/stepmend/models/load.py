"""Load a full-precision or a quantized checkpoint, with a clear error for one that does not load."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from stepmend import formats, inputs
from stepmend.formats import base, tensors
from stepmend.models import decompress, gguf
from stepmend.records import InputError, digest

BUILTIN = "builtin:"
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
"""Files of a model that are downloaded from the hub."""
DUPLICATES = ["consolidated*", "original/*"]
"""Duplicate weights in a vendor's own format, which some models include."""


def locate(model: str, whole: bool = True) -> str:
    """The folder of a checkpoint, or the hub name that it is. Raises InputError if it is neither, or is damaged.

    If not ``whole``, only the configuration and tokenizer of a GGUF file are written, and nothing is converted.
    """
    from stepmend.models.reasoner import CHECKPOINTS, FAMILIES

    if model.startswith(BUILTIN):
        family = model.removeprefix(BUILTIN)
        if family not in FAMILIES:
            raise InputError(f"model: no built-in {family!r}; allowed: {', '.join(BUILTIN + f for f in FAMILIES)}")
        return str(CHECKPOINTS / family)
    folder = Path(model).expanduser()
    if folder.is_dir():
        check(folder)
        return str(folder.resolve())  # quantizing works in another directory
    if gguf.is_file(model):
        try:
            return gguf.full(folder) if whole else gguf.described(folder)
        except InputError as error:
            raise InputError(f"model: {error}") from None
    if folder.exists():
        raise InputError(f"model: {model} is a file; a checkpoint's folder is needed")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise InputError(f"model: {model} does not exist; give a folder, a hub name such as Qwen/Qwen2.5-0.5B-Instruct, or builtin:qwen2")
    found = _download(model)
    check(Path(found))
    return found


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=FILES, ignore_patterns=DUPLICATES)
    except Exception as error:  # the hub client raises many kinds: no network, no such name, no permission
        reason = f"{type(error).__name__}: {_first(error)}"
        raise InputError(f"model: {name} is not a local folder and could not be downloaded from the hub ({reason})") from None


def check(folder: Path) -> None:
    """Check that a folder holds a complete checkpoint with tokenizer. Raises InputError, which names the file and the problem."""
    if not (folder / "config.json").exists():
        raise InputError(f"model: {folder} holds no model (there is no config.json)")
    list(_read_files(folder))
    tensors.json_object(folder / "config.json")
    weights = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not weights:
        raise InputError(f"model: {folder} holds no weights (there is no .safetensors file)")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = tensors.json_object(index).get("weight_map", {})
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise InputError(f"model: {index}: weight_map maps tensors to files; the checkpoint is damaged")
        missing = {*named.values()} - {file.name for file in weights}
        if missing:
            raise InputError(f"model: {folder} lacks {', '.join(sorted(missing))}, which its index names")
    for file in weights:
        tensors.headers_of(file)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")):
        raise InputError(f"model: {folder} holds no tokenizer (no tokenizer.json)")


def config_of(folder: str) -> Any:
    """The checkpoint's configuration. Raises InputError if transformers knows no such architecture."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and a checkpoint's own values raise many kinds
        raise InputError(f"model: {folder}/config.json cannot be read by transformers ({_first(error)})") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


READ = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
"""What loading reads; of a checkpoint without safetensors the GGUF file, too."""


def _read_files(folder: Path) -> Iterator[Path]:
    """Every file of a checkpoint that loading reads, in order. Raises InputError if one is a FIFO, a device, or a link to nothing."""
    kinds = READ if any(folder.glob("*.safetensors")) else READ | {".gguf"}
    for file in sorted(folder.rglob("*")):
        if file.suffix in kinds and not file.is_dir():
            try:
                inputs.regular(file)
            except InputError as error:
                raise InputError(f"model: {error}") from None
            yield file


def tensor_names(folder: str | Path) -> set[str]:
    """The names of all tensors in a checkpoint's files."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= set(opened.keys())
    return found


def checkpoint_digest(folder: str | Path) -> str:
    """The digest of a checkpoint's content: every file that loading reads, completely."""
    parts = []
    for file in _read_files(Path(folder)):
        with file.open("rb") as stream:
            parts.append((str(file.relative_to(folder)), hashlib.file_digest(stream, "sha256").hexdigest()))
    return digest(parts)


def load_tokenizer(folder: str) -> Any:
    """The checkpoint's tokenizer, padding on the left. Raises InputError if it cannot be read, or has no chat template."""
    tokenizer = read_tokenizer(folder)
    if not tokenizer.chat_template:
        raise InputError(f"model: the tokenizer of {folder} has no chat template; a chat or instruct checkpoint is needed")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_tokenizer(folder: str) -> Any:
    """The checkpoint's tokenizer as it is. Raises InputError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and their files raise many kinds
        raise InputError(f"model: the tokenizer of {folder} cannot be read ({_first(error)}); copy the checkpoint again") from None


def ends_of(folder: str) -> frozenset[int]:
    """The ids of the tokens that end an answer: of ``generation_config.json``, or if there is none of ``config.json``."""
    beside = Path(folder) / "generation_config.json"
    found = tensors.json_object(beside).get("eos_token_id") if beside.exists() else None
    found = config_of(folder).eos_token_id if found is None else found
    return frozenset(one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error: of Python, torch, a GPU library or the CPU allocator."""
    named = type(error).__name__ == "OutOfMemoryError"
    said = isinstance(error, RuntimeError) and re.search(r"can't allocate memory|out of memory|ALLOC_FAILED", str(error)) is not None
    return isinstance(error, MemoryError) or named or said


LOADING = {
    "missing_keys": "lacks the tensor",
    "unexpected_keys": "holds an unexpected tensor,",
    "mismatched_keys": "holds the wrong shape of",
}
"""Loading problems that transformers reports, and how they are reported."""
LARGE = 64_000_000
"""Parameters above which a 16-bit checkpoint may be computed in 16 bits on a CPU."""


def placement(folder: str, dtype: str = "auto") -> tuple[str, Any]:
    """Device and dtype that a checkpoint is computed in.

    Args:
        folder: The checkpoint's folder; a quantized one is placed as its parent is.
        dtype: ``float32`` or ``bfloat16``; or ``auto``: on a GPU the checkpoint's own, on a CPU float32, or bfloat16 for large 16-bit
            checkpoints where the CPU is clearly faster in it.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype != "auto":
        return device, getattr(torch, dtype)
    config = config_of(folder)
    if device == "cuda":
        return device, getattr(config, "dtype", None) or "auto"
    sixteen = getattr(config, "dtype", None) in (torch.bfloat16, torch.float16)
    return device, torch.bfloat16 if sixteen and _parameters(config) > LARGE and fast_bfloat16() else torch.float32


def _parameters(config: Any) -> int:
    return sum(p.numel() for p in skeleton(config).parameters())


@cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices at least 1.3 times as fast in bfloat16 as in float32: best times of a layer with 64 rows."""
    import torch

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer, rows_BH = torch.nn.Linear(896, 4864, dtype=dtype), torch.ones((64, 896), dtype=dtype)
        with torch.inference_mode():
            times = []
            for _ in range(6):
                start = time.perf_counter()
                layer(rows_BH)
                times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return best[torch.float32] >= 1.3 * best[torch.bfloat16]


def pretrained(folder: str, **options: Any) -> Any:
    """Load a checkpoint with transformers, without running code of its own.

    Raises InputError, with a tensor's name, for missing, unexpected and mis-shaped tensors: transformers would fill missing ones with
    random numbers and ignore unexpected ones. Tied weights may be missing.
    """
    try:
        with plain_linears(config := config_of(folder)):
            given: dict[str, Any] = {"trust_remote_code": False, "output_loading_info": True, **options}
            if low_bit := formats.unpacked(folder):
                known = [name for name, _ in skeleton(config).named_parameters()]
                given["state_dict"] = base.dense(low_bit, known, given.get("dtype"), getattr(config, "dtype", None))
                vars(config).pop("quantization_config", None)
                loaded: Any = kind_of(config).from_pretrained(None, config=config, **given)
            else:
                dtype = given.get("dtype")
                with decompress.made_in(getattr(config, "dtype", None) if dtype == "auto" else dtype):
                    loaded = kind_of(config).from_pretrained(folder, **given)
                decompress.floats(loaded[0])
    except InputError:
        raise
    except Exception as error:  # transformers and a checkpoint's own values raise many kinds
        if out_of_memory(error):
            raise
        raise InputError(f"model: {folder} cannot be loaded ({_first(error)})") from None
    model, info = loaded
    for kind, what in LOADING.items():
        if names := sorted(map(str, info[kind])):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"model: {folder} {what} {names[0][:160]}{more}; its config.json and its weights do not match")
    _settle(model, options.get("dtype"))
    if low_bit and model.can_generate():
        model.generation_config.eos_token_id = sorted(ends_of(folder)) or None
    return model


def _settle(model: Any, dtype: Any) -> None:
    """Bring to float32, if that was asked for, what transformers left in the file's dtype: tensors that it renames (GPT-NeoX's head)."""
    import torch

    if dtype is torch.float32:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = tensor.data.float()


def skeleton(config: Any) -> Any:
    """The model of a configuration without its numbers, on the meta device. Raises InputError if transformers has no causal one."""
    import torch

    try:
        with plain_linears(config), torch.device("meta"):
            return kind_of(config)._from_config(config)
    except Exception as error:  # transformers and a checkpoint's own values raise many kinds
        raise InputError(f"model: transformers cannot create a causal model of type {config.model_type!r} ({_first(error)})") from None


@contextmanager
def plain_linears(config: Any) -> Iterator[None]:
    """In this context, a family's own subclass of ``nn.Linear`` that computes just what ``nn.Linear`` does is ``nn.Linear``.

    llm-compressor would calibrate such a subclass (Falcon's), and compressed-tensors would then save it dense.
    """
    import sys

    import torch

    kind = kind_of(config)
    linear, home = torch.nn.Linear, sys.modules[kind.__module__]
    common = next(one for one in kind.__mro__ if "_init_weights" in vars(one))
    initialise = common._init_weights
    found = {name: value for name, value in vars(home).items() if isinstance(value, type) and issubclass(value, linear)}
    patched = {name: value for name, value in found.items() if value is not linear and _is_plain(value)}

    def spare(model: Any, module: Any) -> None:
        try:
            initialise(model, module)
        except AttributeError:  # families' own initialising reads weights that compressed layers have not, and which need none
            if not any(hasattr(one, "quantization_scheme") for one in (module, *module.children())):
                raise

    for name in patched:
        setattr(home, name, linear)
    common._init_weights = spare
    try:
        yield
    finally:
        common._init_weights = initialise
        for name, value in patched.items():
            setattr(home, name, value)


def kind_of(config: Any) -> Any:
    """The class that a configuration's model is of: a causal one, or one that reads images too, of which only the text is used.

    Raises InputError if there is neither.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds: list[Any] = []
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        found: Any = auto._model_mapping.get(type(config), ())  # pyright: ignore[reportAttributeAccessIssue]
        kinds += found if isinstance(found, tuple) else (found,)
    # The text model of some types has another configuration.
    named = [kind for kind in kinds if kind.__name__ in (config.architectures or [])]
    if kinds:
        return (named or kinds)[0]
    raise InputError(f"model: {config.model_type} is not a causal language model")


def _is_plain(kind: Any) -> bool:
    """Whether a subclass of ``nn.Linear`` is made as that is, and computes the same; tried on a small one."""
    import torch

    if kind.__init__ is not torch.nn.Linear.__init__:
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        layer, states = kind(8, 4), torch.randn(3, 8)
        return bool(torch.allclose(layer(states), torch.nn.functional.linear(states, layer.weight, layer.bias), atol=1e-6))


def load_model(folder: str, dtype: str = "auto") -> Any:
    """The checkpoint, ready to generate, where ``placement`` puts it.

    A quantized checkpoint is decompressed immediately. compressed-tensors' wrappers for offloading, and those of layers whose activations
    are not quantized, are removed, because they would do nothing here.
    """
    from transformers import GenerationConfig

    device, placed = placement(folder, dtype)
    model = pretrained(folder, dtype=placed).to(device).eval()
    # The checkpoint's own generation settings (beams, penalties, suppressed tokens) are not used: they would change its answers.
    ids = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    if getattr(model.config, "quantization_config", None) is not None:
        _decompress(model)
    if (Path(folder) / "adapter").is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(Path(folder) / "adapter")).eval()
    return model


def free() -> None:
    """Free the memory of unreferenced models: collect reference cycles, and empty torch's GPU cache."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _decompress(model: Any) -> None:
    import torch
    from compressed_tensors.offload import remove_dispatch

    with torch.no_grad():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
    remove_dispatch(model)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if isinstance(module, torch.nn.Linear) and scheme is not None and scheme.input_activations is None:
            module.__dict__.pop("forward", None)
