"""GGUF files of small Qwen2 and Llama models, written with gguf-py: its writer, its names and its quantizers.

gguf-py has none for K-quants: theirs are written here bit by bit, from the layouts' definitions, and read back by gguf-py in the tests.
"""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

BLOCKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Types of blocks that are read."""
ENDS = {"Q4_K": ("Q6_K", "Q6_K"), "Q4_0": ("Q4_0", "Q6_K"), "Q4_1": ("Q4_1", "Q8_0")}
"""Type of most layers -> those of the embeddings and the head, as llama.cpp's tools choose them."""


def k_quant(weight: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of Q4_K, Q5_K or Q6_K of a matrix: for each group of columns the factor, minimum and codes that are nearest."""
    rows = weight.astype(np.float64).reshape(len(weight), -1, 256)
    made = [[_six(block) if kind == "Q6_K" else _four_or_five(block, 4 if kind == "Q4_K" else 5) for block in row] for row in rows]
    return np.array([list(b"".join(row)) for row in made], dtype=np.uint8)


def _half(value: float) -> float:
    return float(np.float16(value))


def _six(block: np.ndarray) -> bytes:
    groups = block.reshape(16, 16)
    steps = np.array([group[np.abs(group).argmax()] / -32 for group in groups])
    d = _half(steps[np.abs(steps).argmax()] / -128) or 1.0
    factors = np.clip(np.round(steps / d), -128, 127).astype(int)
    codes = np.array([np.clip(np.round(group / (d * f or 1)), -32, 31) + 32 for group, f in zip(groups, factors, strict=True)])
    codes = codes.astype(int).reshape(256)
    low, high = bytearray(128), bytearray(64)
    for n, code in enumerate(codes):
        half, place = divmod(n, 128)
        quarter, column = divmod(place, 32)
        low[64 * half + column + 32 * (quarter % 2)] |= (code & 15) << 4 * (quarter // 2)
        high[32 * half + column] |= (code >> 4) << 2 * quarter
    return bytes(low) + bytes(high) + struct.pack("16b", *factors) + np.float16(d).tobytes()


def _four_or_five(block: np.ndarray, bits: int) -> bytes:
    groups, most = block.reshape(8, 32), 2**bits - 1
    minima = np.maximum(-groups.min(1), 0)
    steps = np.maximum((groups.max(1) + minima) / most, 0)
    d, m = _half(steps.max() / 63) or 1.0, _half(minima.max() / 63) or 1.0
    factors, lows = (np.clip(np.round(of / by), 0, 63).astype(int) for of, by in ((steps, d), (minima, m)))
    codes = [np.clip(np.round((g + m * low) / (d * f or 1)), 0, most) for g, f, low in zip(groups, factors, lows, strict=True)]
    codes = np.array(codes).astype(int)
    packed = bytearray(12)
    for j in range(4):
        packed[j] = factors[j] | factors[j + 4] >> 4 << 6
        packed[j + 4] = lows[j] | lows[j + 4] >> 4 << 6
        packed[j + 8] = factors[j + 4] & 15 | (lows[j + 4] & 15) << 4
    high = bytearray(32)
    for j in range(8):
        for n in range(32):
            high[n] |= (codes[j][n] >> 4 & 1) << j
    low = bytes(int(codes[j][n] & 15 | (codes[j + 1][n] & 15) << 4) for j in range(0, 8, 2) for n in range(32))
    return np.float16(d).tobytes() + np.float16(m).tobytes() + bytes(packed) + (bytes(high) if bits == 5 else b"") + low


def blocks(weight: np.ndarray, kind: str) -> np.ndarray:
    """A matrix in a type of ggml: its bytes, row by row."""
    if kind.endswith("_K"):
        return k_quant(weight, kind)
    return gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[kind])


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of Llama's queries or keys as llama.cpp has them: of each head the halves that rotate together, in turn."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def make(parent: str, kinds: dict[str, str] | str, out: Path, *, head: str | None = None, alignment: int = 32, texts: bool = False) -> None:
    """Write ``parent`` as a GGUF file.

    ``kinds`` is a type, or types by a part of a tensor's name, the rest F16; ``head`` the type of a head of its own, None where it is the
    embeddings; ``texts`` whether the tokenizer goes along.
    """
    config = json.loads((Path(parent) / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(out, kind)
    writer.add_name("made by a test")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if kind == "llama":
        writer.add_rope_dimension_count(width)
    if kind == "qwen3":
        writer.add_key_length(width)
        writer.add_value_length(width)
    _add_tokenizer(writer, parent, texts)
    names = gguf.get_tensor_name_map(_architecture(kind), config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in load_file(Path(parent) / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        file, weight = f"{names.get_name(stem)}.{end}", tensor.float().numpy()
        part = file.split(".")[-2]
        if kind == "llama" and part in heads:
            weight = permuted(weight, heads[part])
        chosen = kinds if isinstance(kinds, str) else next((of for word, of in kinds.items() if word in file), "F16")
        _add(writer, file, weight, chosen if weight.ndim > 1 else "F32")
        if file == "token_embd.weight" and head:
            _add(writer, "output.weight", weight, head)
    if (rope := config["rope_parameters"])["rope_type"] == "llama3":
        _add(writer, "rope_freqs.weight", _rope_factors(rope, width), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_factors(rope: dict, width: int) -> np.ndarray:
    """By what llama.cpp divides each frequency, as Llama 3's configuration says it."""
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (length / waves - low) / (high - low)
    middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(waves < length / high, 1.0, np.where(waves > length / low, rope["factor"], middle)).astype(np.float32)


def _architecture(kind: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        writer.add_tensor(name, weight.astype(np.float32 if kind == "F32" else np.float16))
    else:
        writer.add_tensor(name, blocks(weight, kind), raw_dtype=number)


def _add_tokenizer(writer: gguf.GGUFWriter, parent: str, texts: bool) -> None:
    """The tokenizer's tokens, or that there is none: llama.cpp then takes token ids alone."""
    if not texts:
        writer.add_tokenizer_model("none")
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parent)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_decoder.values()}
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def dequantized(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file by its name there, float32, as gguf-py reads it."""
    found = gguf.GGUFReader(file).tensors
    shapes = {tensor.name: [int(size) for size in reversed(tensor.shape)] for tensor in found}
    values = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy() for tensor in found}
    return {name: torch.from_numpy(value).view(shapes[name]) for name, value in values.items()}
