"""NNCF's quantization-aware training with absorbable LoRA (openvinotoolkit/nncf, ``FQ_LORA``), a peer of benchmarks/real.py.

An adapter is added to every weight before it is rounded, and vanishes in the codes; adapters and scales are trained by KL divergence from
full precision, scales at a tenth of the adapters' rate, as in NNCF's example. NNCF exports to OpenVINO; here the weights are written as
they are multiplied, dequantized. Needs nncf: pip install nncf.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qad
import torch

from stepmend import Bullet
from stepmend.models import load
from stepmend.models.forward import collate
from stepmend.quantize import run as quantizer
from stepmend.quantize.schemes import Scheme
from stepmend.rundir import make_folder

RANK = 256
"""NNCF's default rank, or the least width of a layer where that is less."""


def train(parent: str, traces: Sequence[Bullet], scheme: Scheme, steps: int, size: int, rate: float, seed: int, out: Path) -> None:
    """Train on whole traces and write ``out``, dequantized; ``rate`` is the adapters' peak learning rate."""
    import nncf  # pyright: ignore[reportMissingImports]

    readings, pad = qad.read(parent, traces)
    torch.manual_seed(seed)
    model, example = attach(parent, scheme)
    qad.fit(model, groups_of(model, rate), readings, steps, size, seed, pad, states)
    model = nncf.strip(model.eval(), do_copy=False, strip_format=nncf.StripFormat.IN_PLACE, example_input=example)
    values = {name: value for name, value in model.state_dict().items() if "nncf" not in name}
    make_folder(out, lambda part: qad.save_dense(model, values, parent, part))


def attach(parent: str, scheme: Scheme) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model with NNCF's rounding and adapters in every linear layer but the head; and an input that it was traced with."""
    import nncf  # pyright: ignore[reportMissingImports]
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    device, _ = load.placement(parent)
    model: Any = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    model = model.to(device)
    rank = min(RANK, *(width for widths in quantizer.linear_widths(parent).values() for width in widths))
    example = {name: value.to(device) for name, value in model.dummy_inputs.items()}
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM if scheme.symmetric else nncf.CompressWeightsMode.INT4_ASYM,
        group_size=scheme.group or -1,
        backup_mode=nncf.BackupMode.NONE,  # embeddings and head stay as they are
        compression_format=nncf.CompressionFormat.FQ_LORA,
        dataset=nncf.Dataset([example]),
        advanced_parameters=AdvancedCompressionParameters(lora_adapter_rank=rank),
    )
    return model, example


def states(model: Any, rows: Sequence[Sequence[int]], where: Sequence[tuple[int, int]], pad: int) -> torch.Tensor:
    """Last hidden states at (row, place) pairs, [N, H], by a pass of the whole model: NNCF's rounding is in no other."""
    ids_BT = collate(rows, pad, model.device)
    hidden_BTH = model(input_ids=ids_BT, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
    row_N, place_N = torch.tensor(where, device=ids_BT.device).T
    return hidden_BTH[row_N, place_N]


def groups_of(model: Any, rate: float) -> list[dict[str, Any]]:
    """Adapters at ``rate``, scales at a tenth of it; nothing else is trained."""
    from nncf.torch.function_hook.wrapper import get_hook_storage  # pyright: ignore[reportMissingImports]

    model.requires_grad_(False)
    adapters, scales = list[torch.nn.Parameter](), list[torch.nn.Parameter]()
    for _, module in get_hook_storage(model).named_hooks():
        if hasattr(module, "get_adapters"):
            module.enable_gradients()
            own = module.get_adapters()
            adapters += own.values()
            scales += [parameter for name, parameter in module.get_trainable_params().items() if name not in own]
    return [{"params": adapters, "lr": rate}, {"params": scales, "lr": rate / 10}]
