"""Functions of many small kernels, recorded once as a CUDA graph and replayed: launching such a kernel takes longer than running it."""

from collections.abc import Callable
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]
Graph = tuple[torch.cuda.CUDAGraph, Tensors, Tensors]


class Recorded:
    """A function from tensors and integers to tensors. On a CPU it is called directly.

    On a GPU its kernels are recorded once for each device, shapes and integers. The function must not read values back to the CPU. The
    tensors that a replay gives are overwritten by the next one of the same shapes.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        self.function = function
        self.recorded: dict[Any, Graph] = {}

    def __call__(self, *tensors: torch.Tensor, **integers: int) -> Tensors:
        if not tensors[0].is_cuda:
            return self.function(*tensors, **integers)
        key = self._key(tensors, integers)
        if key not in self.recorded:
            self.recorded[key] = self._record(tensors, integers)
        graph, inputs, outputs = self.recorded[key]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return outputs

    @staticmethod
    def _key(tensors: Tensors, integers: dict[str, int]) -> Any:
        return (tensors[0].device, *(tensor.shape for tensor in tensors), *integers.items())

    def _record(self, tensors: Tensors, integers: dict[str, int]) -> Graph:
        inputs, graph = tuple(tensor.contiguous().clone() for tensor in tensors), torch.cuda.CUDAGraph()
        self.function(*inputs, **integers)  # what kernels load at their first launch cannot be recorded
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            outputs = self.function(*inputs, **integers)
        return graph, inputs, outputs


class Tried(Recorded):
    """``Recorded`` for a function that may not be recordable, such as the forward pass of any model: that one is called as it is.

    The function may write to tensors that it holds, if it writes the same when it is called again. A recording is used only where its
    replay gives the values of a plain call, to the bit. Shapes that come once are not recorded. Recordings share their memory, and outputs
    of one shape share a tensor: what a call gives is overwritten by the next one.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        super().__init__(function)
        self.plain = False
        self.pool: Any = None
        self.seen = set[Any]()
        self.given: dict[Any, torch.Tensor] = {}

    def __call__(self, *tensors: torch.Tensor, **integers: int) -> Tensors:
        key = self._key(tensors, integers)
        if self.plain or key not in self.seen:
            self.seen.add(key)
            return self.function(*tensors, **integers)
        try:
            return super().__call__(*tensors, **integers)
        except RuntimeError as error:
            if short := next((one for one in (error, error.__context__) if isinstance(one, torch.OutOfMemoryError)), None):
                raise short from None
            self.plain = True
            self.recorded.clear()
            return self.function(*tensors, **integers)

    def _record(self, tensors: Tensors, integers: dict[str, int]) -> Graph:
        wanted = tuple(tensor.clone() for tensor in self.function(*tensors, **integers))
        outputs = tuple(self.given.setdefault((i, one.shape, one.dtype), torch.empty_like(one)) for i, one in enumerate(wanted))
        inputs, graph = tuple(tensor.clone() for tensor in tensors), torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool):
            for mine, made in zip(outputs, self.function(*inputs, **integers), strict=True):
                mine.copy_(made)
        graph.replay()
        if not all(map(torch.equal, wanted, outputs)):
            raise RuntimeError("a replay gives other values")
        return graph, inputs, outputs
