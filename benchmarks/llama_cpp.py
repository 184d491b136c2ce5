"""llama.cpp's own C interface, through ctypes: quantizing, logits and greedy answers, for what is compared with our forward pass.

The shared library is that of xllamacpp or llama-cpp-python: STEPMEND_LLAMA_CPP names it, or else one of them is installed.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

PLACES = (("xllamacpp", "xllamacpp*.so"), ("llama_cpp", "lib/libllama.so"))
"""Packages that bring the library, and where."""


def library_file() -> Path | None:
    """The shared library, where there is one."""
    if named := os.environ.get("STEPMEND_LLAMA_CPP"):
        return Path(named)
    for package, pattern in PLACES:
        if (spec := find_spec(package)) and spec.origin and (found := sorted(Path(spec.origin).parent.glob(pattern))):
            return found[0]
    return None


class _Parameters(ctypes.Structure):
    """Parameters of a model: only passed on, and at least as large as llama.cpp's own."""

    _fields_ = (("bytes", ctypes.c_ubyte * 1024),)


class _ContextParameters(ctypes.Structure):
    """Parameters of a context: the first ones, and more bytes than llama.cpp's own have."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32), ("n_ubatch", ctypes.c_uint32), ("n_seq_max", ctypes.c_uint32),
        ("bytes", ctypes.c_ubyte * 1024),
    )  # fmt: skip


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p), ("embd", ctypes.c_void_p), ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p), ("logits", ctypes.c_void_p),
    )  # fmt: skip


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silent = _LOG(lambda level, text, data: None)


@cache
def library() -> Any:
    """The library, ready to be called. Raises FileNotFoundError where there is none."""
    file = library_file()
    if file is None:
        raise FileNotFoundError("llama.cpp: install xllamacpp or llama-cpp-python, or name their library in STEPMEND_LLAMA_CPP")
    found = ctypes.CDLL(str(file))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", _Parameters, []),
        ("llama_context_default_params", _ContextParameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Parameters]),
        ("llama_init_from_model", pointer, [pointer, _ContextParameters]),
        ("llama_set_n_threads", None, [pointer, number, number]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_decode", number, [pointer, _Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, number]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [_LOG, pointer]),
        ("llama_print_system_info", ctypes.c_char_p, []),
        ("ggml_quantize_chunk", ctypes.c_size_t, [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.llama_log_set(_silent, None)
    found.llama_backend_init()
    return found


def quantize(weight_MN: np.ndarray, kind: int, width: int) -> np.ndarray:
    """ggml's own quantizer: the blocks of a type (by its number) of a float32 matrix, uint8 [M, bytes]; ``width`` bytes a row."""
    weight_MN = np.ascontiguousarray(weight_MN, dtype=np.float32)
    out = np.empty((len(weight_MN), width), dtype=np.uint8)
    rows, columns = weight_MN.shape
    written = library().ggml_quantize_chunk(kind, weight_MN.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    assert written == out.nbytes, f"{written} bytes, {out.nbytes} expected"
    return out


class Model:
    """A GGUF file in llama.cpp, on one thread; one text at a time."""

    def __init__(self, file: Path, context: int = 2048, threads: int = 1) -> None:
        """Raises OSError where llama.cpp does not load the file."""
        self._lib = lib = library()
        self._model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp does not load {file}")
        parameters = lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context, context, 512
        self._context = lib.llama_init_from_model(self._model, parameters)
        lib.llama_set_n_threads(self._context, threads, threads)
        self.size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _decode(self, ids: Sequence[int], wanted: Sequence[bool]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        flags = (ctypes.c_int8 * len(ids))(*wanted)
        batch = _Batch(len(ids), ctypes.addressof(tokens), None, None, None, None, ctypes.addressof(flags))
        status = self._lib.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _row(self, index: int) -> np.ndarray:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, index), (self.size,))

    def logits(self, ids: Sequence[int], start: int = 0) -> np.ndarray:
        """Logits [T - start, V] at a text's tokens from ``start`` on."""
        self._clear()
        self._decode(ids, [i >= start for i in range(len(ids))])
        return np.stack([self._row(i) for i in range(start, len(ids))])

    def greedy(self, ids: Sequence[int], count: int, ends: frozenset[int]) -> list[int]:
        """Up to ``count`` tokens that follow, the most probable each time; the token that ends the answer is the last one."""
        self._clear()
        self._decode(ids, [i == len(ids) - 1 for i in range(len(ids))])
        made: list[int] = []
        place = len(ids) - 1
        while len(made) < count:
            made.append(int(self._row(place).argmax()))
            if made[-1] in ends:
                break
            self._decode(made[-1:], [True])
            place = 0
        return made
