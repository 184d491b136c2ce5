"""Names of torch, transformers, llm-compressor and compressed-tensors that are private or lie deep, and so may go with any release.

Every one that the package uses is listed here, with what is asked of it. A new bound in ``pyproject.toml`` is right where this passes.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import stepmend

PACKAGE = Path(stepmend.__file__).parent
LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed_tensors")
PUBLIC = {
    *("torch", "torch.nn", "torch.nn.utils", "torch.func", "torch.overrides", "torch.utils.checkpoint"),
    *("transformers", "llmcompressor", "compressed_tensors.quantization", "llmcompressor.modifiers.gptq"),
    *("llmcompressor.modifiers.quantization",),
}
"""Modules that the libraries document."""
DEEP: dict[tuple[str, str], tuple[str, ...]] = {
    ("compressed_tensors.compressors.mxfp8", "base"): ("decompress_mx_scale",),
    ("compressed_tensors.compressors.nvfp4", "base"): ("unpack_fp4_from_uint8",),
    ("compressed_tensors.compressors.nvfp4.helpers", "pack_fp4_to_uint8"): ("x",),
    ("compressed_tensors.compressors.nvfp4.helpers", "unpack_fp4_from_uint8"): ("a", "m", "n", "dtype"),
    ("compressed_tensors.compressors.pack_quantized.helpers", "pack_to_int32"): ("value", "num_bits"),
    ("compressed_tensors.compressors.pack_quantized.helpers", "unpack_from_int32"): ("value", "num_bits", "shape", "packed_dim"),
    ("compressed_tensors.modeling", "attention"): ("forward_quantize",),
    ("compressed_tensors.modeling", "kvcache"): ("forward_quantize",),
    ("compressed_tensors.offload", "remove_dispatch"): ("module",),
    ("compressed_tensors.quantization.lifecycle", "forward"): ("forward_quantize",),
    ("compressed_tensors.utils", "is_match"): ("name", "module", "targets"),
    ("compressed_tensors.utils", "match_modules_set"): ("model", "targets"),
    ("llmcompressor.modeling.offset_norm", "NormCalibrationModule"): (),
    ("llmcompressor.modeling.offset_norm", "_is_registered"): (),
    ("llmcompressor.modifiers.autoround", "AutoRoundModifier"): (),
    ("llmcompressor.modifiers.autoround", "base"): ("AutoRound",),
    ("llmcompressor.modifiers.transform.awq", "AWQMapping"): ("smooth_layer", "balance_layers"),
    ("llmcompressor.modifiers.transform.awq", "AWQModifier"): (),
    ("llmcompressor.modifiers.transform.awq", "dynamic_mappings"): ("AWQ_DYNAMIC_MAPPING_REGISTRY",),
    ("llmcompressor.modifiers.transform.awq.mappings", "AWQ_MAPPING_REGISTRY"): (),
    ("llmcompressor.modifiers.transform.smoothquant", "SmoothQuantModifier"): (),
    ("llmcompressor.modifiers.transform.smoothquant", "dynamic_mappings"): ("SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY",),
    ("llmcompressor.modifiers.transform.smoothquant.utils", "MAPPINGS_REGISTRY"): (),
    ("llmcompressor.pipelines.cache", "IntermediatesCache"): ("_pin_intermediate",),
    ("llmcompressor.recipe", "Recipe"): ("from_modifiers", "yaml"),
    ("torch.utils._pytree", "tree_leaves"): ("tree",),
    ("transformers.conversion_mapping", "get_checkpoint_conversion_mapping"): ("model_type",),
    ("transformers.conversion_mapping", "get_model_conversion_mapping"): ("model",),
    ("transformers.core_model_loading", "WeightConverter"): ("source_patterns", "target_patterns"),
    ("transformers.core_model_loading", "revert_weight_conversion"): ("model", "state_dict"),
    ("transformers.modeling_gguf_pytorch_utils", "GGUF_SUPPORTED_ARCHITECTURES"): (),
    ("transformers.modeling_gguf_pytorch_utils", "TENSOR_PROCESSORS"): ("get",),
    ("transformers.modeling_gguf_pytorch_utils", "TensorProcessor"): ("config",),
    ("transformers.modeling_gguf_pytorch_utils", "get_gguf_hf_weights_map"): ("hf_model", "processor", "model_type"),
    ("transformers.modeling_layers", "GradientCheckpointingLayer"): (),
    ("transformers.modeling_outputs", "BaseModelOutputWithPast"): ("last_hidden_state", "past_key_values"),
    ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS"): (),
}
"""What is imported from anywhere else: its parameters, or attributes, that the package relies on."""
ATTRIBUTES = {
    "_C": ("torch", ""),
    "_cdata": ("torch", "UntypedStorage"),
    "_modules": ("torch.nn", "Module"),
    "_pin_intermediate": ("llmcompressor.pipelines.cache", "IntermediatesCache"),
    "_from_config": ("transformers", "LlamaForCausalLM"),
    "_init_weights": ("transformers", "LlamaForCausalLM"),
    "_model_mapping": ("transformers", "AutoModelForCausalLM"),
    "_name_or_path": ("transformers", "LlamaConfig"),
    "_attn_implementation": ("transformers", "LlamaConfig"),
}
"""Private attributes that are read or set, each with what has it."""


def own(trees: list[ast.Module]) -> set[str]:
    """The private names that the package itself defines: functions, and attributes of its own classes."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    found |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    stored = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return found | {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}


def foreign(trees: list[ast.Module]) -> Iterator[str]:
    """Private attributes that the package uses and does not define."""
    ours = own(trees)
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in ours:
                yield node.attr


def imported(trees: list[ast.Module]) -> Iterator[tuple[str, str]]:
    """What is imported from the libraries, but for their documented modules; a private name counts wherever it is."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
                yield from ((str(node.module), one.name) for one in node.names if node.module not in PUBLIC or one.name[0] == "_")
            elif isinstance(node, ast.Import):
                yield from ((one.name, "") for one in node.names if one.name.split(".")[0] in LIBRARIES and one.name not in PUBLIC)


@pytest.fixture(scope="module")
def trees() -> list[ast.Module]:
    return [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]


def test_every_private_name_that_is_used_is_listed(trees):
    assert {*imported(trees)} == DEEP.keys()
    assert {*foreign(trees)} == ATTRIBUTES.keys()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from torch._inductor import config", ("torch._inductor", "config")),
        ("from transformers.cache_utils import DynamicCache", ("transformers.cache_utils", "DynamicCache")),
        ("import torch._dynamo", ("torch._dynamo", "")),
        ("from torch.nn import _hidden", ("torch.nn", "_hidden")),
    ],
)
def test_a_private_import_is_seen(line, found):
    assert [*imported([ast.parse(line)])] == [found]
    assert [*foreign([ast.parse("model._hidden = 1\nself._own = model.__dict__")])] == ["_hidden"]


@pytest.mark.parametrize(("module", "name"), DEEP)
def test_what_is_imported_is_there(module, name):
    found = getattr(import_module(module), name, None) or import_module(f"{module}.{name}")
    known = set(dir(found))
    if callable(found):
        known |= {*inspect.signature(found).parameters}
    assert {*DEEP[module, name]} <= known


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attributes_are_there(name):
    module, of = ATTRIBUTES[name]
    owner: Any = getattr(import_module(module), of) if of else import_module(module)
    assert hasattr(owner() if of in ("LlamaConfig", "Module") else owner, name)


def bounds() -> dict[str, tuple[str, str]]:
    """The lower and upper bound of each requirement of the extra ``run`` that has both."""
    extras = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pattern = re.compile(r"([\w-]+)>=([\d.]+),<([\d.]+)")
    return {match[1]: (match[2], match[3]) for line in extras["run"] if (match := pattern.fullmatch(line))}


def parts(number: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", number.partition("+")[0])))


@pytest.mark.parametrize("library", ["torch", "transformers", "llmcompressor", "compressed-tensors"])
def test_what_is_installed_lies_within_the_bounds(library):
    low, high = bounds()[library]
    assert parts(low) <= parts(version(library)) < parts(high)
