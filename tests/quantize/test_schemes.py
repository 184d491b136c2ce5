"""The table of schemes: names, refusals, widths."""

import subprocess
import sys

import pytest

from stepmend import InputError
from stepmend.quantize import schemes


def test_every_listed_scheme_reads_back():
    names = [scheme.name for scheme in schemes.listing()]
    assert len(names) == len(set(names))
    assert [schemes.parse(name).name for name in names] == names


def test_a_name_says_what_is_done():
    scheme = schemes.parse("awq-w3a16-g64-kv8")
    assert (scheme.method, scheme.weight_bits, scheme.activation_bits, scheme.group, scheme.kv_bits) == ("awq", 3, 16, 64, 8)
    assert not scheme.symmetric
    assert schemes.parse("rtn-w4a16").group is None
    assert [schemes.parse(n).symmetric for n in ("rtn-w4a16", "gptq-w3a16-g64-asym", "awq-w4a16-g32-sym")] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gguf-w4a16-g128", "unknown 'gguf-w4a16-g128'; allowed: rtn-"),
        ("w4a16", "unknown"),
        ("gptq-w４a16-g128", "unknown"),  # a full-width digit
        ("gptq-w04a16-g128", "unknown"),
        ("gptq-w4a16-g00128", "unknown"),
        ("gptq-w" + "9" * 9000 + "a16", "unknown"),
        ("gptq-w2a16-g128", "gptq is offered as w3a16, w4a16, w8a8"),
        ("awq-w8a8", "awq is offered as"),
        ("gptq-w4a16-g100", "groups of 32, 64, 128"),
        ("smoothquant-w8a8-g128", "one scale a row"),
        ("rtn-w8a8-asym", "zero points (-asym) with a16 only"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name, line):
    with pytest.raises(InputError) as caught:
        schemes.parse(name)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_does_not_divide_a_width_is_said_with_those_that_do():
    linears = {"layers.0.q_proj": (896, 896), "layers.0.down_proj": (896, 4864)}
    schemes.check_widths(schemes.parse("rtn-w4a16-g128"), linears)
    with pytest.raises(InputError, match=r"groups of 128 do not divide the 192 columns of layers.0.o_proj; groups of 32, 64 do"):
        schemes.check_widths(schemes.parse("rtn-w4a16-g128"), {**linears, "layers.0.o_proj": (896, 192)})


def test_the_table_needs_no_torch():
    code = "import sys; from stepmend.quantize import schemes; schemes.listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
