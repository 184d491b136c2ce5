"""A quantized checkpoint for every test of tuning."""

import pytest

from tests.restore.made import quantized


@pytest.fixture(scope="package")
def low_bit(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("low") / "w3"
    quantized(tiny_llama, "rtn-w3a16-g64", out)
    return out
