"""A Qwen2, Qwen3 or Llama checkpoint as a GGUF file, with gguf-py's writer and names, as llama.cpp's converter would write it."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of Llama's queries or keys as llama.cpp has them: of each head the halves that rotate together, in turn."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(
    parent: str, out: Path, kind_of: Callable[[str], str], blocks: Callable[[np.ndarray, str], np.ndarray], *, head: str | None = None,
    alignment: int = 32, texts: bool = True, name: str = "made by stepmend's benchmarks",
) -> None:  # fmt: skip
    """Write a checkpoint as a GGUF file.

    Args:
        parent: the folder of the checkpoint, in one safetensors file.
        out: the GGUF file.
        kind_of: the type of a matrix, by its name in the file; what is no matrix is F32.
        blocks: the bytes of a float32 matrix in a type that has blocks, row by row.
        head: the type of the head; None where it is tied to the embeddings.
        alignment: of the tensors, in bytes.
        texts: whether the tokenizer goes along; llama.cpp else takes token ids alone.
        name: what the file calls itself.
    """
    config = json.loads((Path(parent) / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(out, kind)
    writer.add_name(name)
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
    _add_tokenizer(writer, parent, config["vocab_size"], texts)
    names = gguf.get_tensor_name_map(_architecture(kind), config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in load_file(Path(parent) / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        file, weight = f"{names.get_name(stem)}.{end}", tensor.float().numpy()
        part = file.split(".")[-2]
        if kind == "llama" and part in heads:
            weight = permuted(weight, heads[part])
        _add(writer, file, weight, kind_of(file) if weight.ndim > 1 else "F32", blocks)
        if file == "token_embd.weight" and head:
            _add(writer, "output.weight", weight, head, blocks)
    if (rope := config["rope_parameters"])["rope_type"] == "llama3":
        _add(writer, "rope_freqs.weight", _rope_factors(rope, width), "F32", blocks)
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


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: str, blocks: Callable[[np.ndarray, str], np.ndarray]) -> None:
    if kind in ("F32", "F16"):
        writer.add_tensor(name, weight.astype(np.float32 if kind == "F32" else np.float16))
    else:
        writer.add_tensor(name, blocks(weight, kind), raw_dtype=gguf.GGMLQuantizationType[kind])


def _add_tokenizer(writer: gguf.GGUFWriter, parent: str, size: int, texts: bool) -> None:
    """The tokenizer's tokens, or that there is none: llama.cpp then takes token ids alone."""
    if not texts:
        writer.add_tokenizer_model("none")
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parent)
    held = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [held.get(index, f"[PAD{index}]") for index in range(size)]
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED, None: gguf.TokenType.NORMAL}
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[added.get(token)] if index in held else gguf.TokenType.UNUSED for index, token in enumerate(tokens)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
