"""GGUF files as checkpoints: a low-bit file with the configuration and tokenizer of its full-precision model, and a full-precision file as
an ordinary folder.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepmend.files import make_folder
from stepmend.formats import base, gguf_header, gguf_names, gguf_reader
from stepmend.formats.gguf import Gguf, GgufTensors, file_in
from stepmend.records import InputError

if TYPE_CHECKING:
    import torch

BESIDE = frozenset({".json", ".jinja", ".model", ".txt"})
"""Files of the full-precision checkpoint that a low-bit one needs: configuration, tokenizer, chat template."""
INDEX = ".index.json"
"""How the name of a file ends that lists which file holds which tensor."""
FULL = ("F32", "F16", "BF16")
"""Types of a tensor without codes."""


def is_file(path: str) -> bool:
    """Whether a path names a GGUF file."""
    return path.lower().endswith(".gguf")


def named(path: str) -> Path | None:
    """The GGUF file that a path names: itself, or the one in a folder without safetensors; None if it names none.

    Raises InputError if the folder holds several.
    """
    place = Path(path).expanduser()
    if is_file(path):
        return place
    if place.is_dir() and any(place.glob("*.gguf")) and not any(place.glob("*.safetensors")):
        return file_in(place)
    return None


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="stepmend-")


def beside(file: Path, parent: str) -> str:
    """A folder, for as long as the process lives, that holds a link to a GGUF file, and its model's configuration and tokenizer.

    Raises InputError if the file cannot be read, or holds no low-bit layer.
    """
    header = gguf_header.read(file)
    if all(tensor.kind in FULL for tensor in header.tensors if tensor.name.startswith("blk.")):
        raise InputError(f"{file} is in full precision (its layers are {', '.join(sorted({t.kind for t in header.tensors}))})")
    name = hashlib.sha256(f"{file.resolve()}\n{Path(parent).resolve()}".encode()).hexdigest()[:12]
    out = Path(_scratch().name) / name

    def fill(part: Path) -> None:
        for found in sorted(Path(parent).iterdir()):
            if found.suffix in BESIDE and not found.name.endswith(INDEX) and found.is_file():
                shutil.copyfile(found, part / found.name)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        tied = all(tensor.name != gguf_names.HEAD for tensor in header.tensors)
        for of in (config, config["text_config"]) if isinstance(config.get("text_config"), dict) else (config,):
            of["tie_word_embeddings"] = tied  # a file may hold the head apart from the embeddings, rounded differently
        config["quantization_config"] = {"quant_method": "gguf"}
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (part / file.name).symlink_to(file.resolve())

    make_folder(out, fill)
    return str(out)


def full(file: Path) -> str:
    """The folder of an ordinary checkpoint with what a GGUF file holds, dequantized; made once for each content, in the user's cache.

    Tensors are in the file's 16 bits where all of its layers are, else in float32, which holds every product of a code and its scale.
    Raises InputError if the file cannot be read, or transformers knows no such architecture.
    """
    header = gguf_header.read(file)
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stepmend"
    stem = re.sub(r"[^\w.-]+", "-", re.sub(r"(?i)\.gguf$", "", file.name))
    out = home / f"{stem}-{content}"
    if not (out / "config.json").exists():
        make_folder(out, lambda part: _convert(file, header, part))
    return str(out)


def described(file: Path) -> str:
    """A folder, for as long as the process lives, with the configuration and tokenizer that a file's header describes, and no weights.

    Raises InputError where the file cannot be read, transformers knows no such architecture, or a tensor is none of the model's.
    """
    header = gguf_header.read(file)
    name = hashlib.sha256(f"{file.resolve()}\n{file.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    out = Path(_scratch().name) / f"described-{name}"
    if not out.exists():

        def fill(part: Path) -> None:
            _describe(file, header, part)
            (part / file.name).unlink()

        make_folder(out, fill)
    return str(out)


def _convert(file: Path, header: gguf_header.Header, part: Path) -> None:
    from safetensors.torch import save_file

    low_bit, dtype = _describe(file, header, part), _dtype_of(header)
    found = base.dense(low_bit, [*low_bit.tensors.headers], dtype, None)
    (part / file.name).unlink()
    save_file({name: value.to(dtype).contiguous() for name, value in found.items()}, part / "model.safetensors", metadata={"format": "pt"})


def _dtype_of(header: gguf_header.Header) -> "torch.dtype":
    """The dtype in which a file's tensors are held as an ordinary checkpoint."""
    import torch

    kinds = {tensor.kind for tensor in header.tensors if len(tensor.shape) > 1}
    return torch.bfloat16 if kinds <= {"BF16", "F32"} and "BF16" in kinds else torch.float16 if kinds == {"F16"} else torch.float32


def _describe(file: Path, header: gguf_header.Header, part: Path) -> Any:
    """Write the configuration and tokenizer that a file's header describes, and a link to it; gives its tensors, of which none is read."""
    config, tokenizer = _read(file, header)
    values = header.values
    end = values.get("tokenizer.ggml.eos_token_id")
    ends = [one for one in (end, values.get("tokenizer.ggml.eot_token_id")) if isinstance(one, int)]
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    pad = values.get("tokenizer.ggml.padding_token_id")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad) if isinstance(pad, int) else tokenizer.eos_token
    tokenizer.chat_template = values.get("tokenizer.chat_template") or tokenizer.chat_template
    config.eos_token_id, config.pad_token_id, config.dtype = (ends or [None])[0], tokenizer.pad_token_id, _dtype_of(header)
    config.save_pretrained(part)
    (part / "generation_config.json").write_text(json.dumps({"eos_token_id": [*dict.fromkeys(ends)]}) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(part)
    (part / file.name).symlink_to(file.resolve())
    return Gguf(GgufTensors(part), {})


def _read(file: Path, header: gguf_header.Header) -> tuple[Any, Any]:
    """The configuration and tokenizer that transformers makes of a file's header."""
    from transformers import AutoConfig, AutoTokenizer

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with gguf_reader.of(header):
            return AutoConfig.from_pretrained(**place), AutoTokenizer.from_pretrained(**place)
    except Exception as error:  # transformers and a file's own values raise many kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{file}: transformers cannot read its configuration or tokenizer ({first})") from None
