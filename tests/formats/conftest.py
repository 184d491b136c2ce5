"""A GGUF file that several tests read."""

from pathlib import Path

import pytest

from tests.formats import ggufs

MIXED = {"ffn_down": "Q4_K", "attn_v": "F16", "blk.1": "Q4_1", "blk": "Q4_0", "token": "Q5_0"}


@pytest.fixture(scope="module")
def file(tiny_llama, tmp_path_factory) -> Path:
    """A file of the tiny Llama in several types, with a head of its own."""
    out = tmp_path_factory.mktemp("gguf") / "Tiny Q4_K.GGUF"
    ggufs.make(tiny_llama, MIXED, out, head="Q8_0", alignment=64)
    return out
