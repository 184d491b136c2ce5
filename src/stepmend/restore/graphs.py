"""Functions of many small kernels, recorded once as a CUDA graph and replayed: a launch costs more than the work of such a kernel."""

from collections.abc import Callable
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]


class Recorded:
    """A function of tensors and integers that gives tensors. On a CPU it is called as it is.

    On a GPU its kernels are recorded once for each device, shapes and integers. The function must not read values back to the CPU. The
    tensors that a replay gives are overwritten by the next one of the same shapes.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        self.function = function
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, Tensors, Tensors]] = {}

    def __call__(self, *tensors: torch.Tensor, **integers: int) -> Tensors:
        if not tensors[0].is_cuda:
            return self.function(*tensors, **integers)
        key = (tensors[0].device, *(tensor.shape for tensor in tensors), *integers.items())
        if key not in self.recorded:
            self.recorded[key] = self._record(tensors, integers)
        graph, inputs, outputs = self.recorded[key]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs

    def _record(self, tensors: Tensors, integers: dict[str, int]) -> tuple[torch.cuda.CUDAGraph, Tensors, Tensors]:
        inputs, graph = tuple(tensor.contiguous().clone() for tensor in tensors), torch.cuda.CUDAGraph()
        self.function(*inputs, **integers)  # what kernels load at their first launch cannot be recorded
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            outputs = self.function(*inputs, **integers)
        return graph, inputs, outputs
