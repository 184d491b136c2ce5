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
        ("w9a16", "unknown"),
        ("gptq-", "unknown"),
        ("nvfp4-g16", "unknown"),
        ("autoround-fp8-block", "autoround is not offered for fp8-block; gptq for"),
        ("gptq-w４a16-g128", "unknown"),  # a full-width digit
        ("gptq-w04a16-g128", "unknown"),
        ("gptq-w4a16-g00128", "unknown"),
        ("gptq-w" + "9" * 9000 + "a16", "unknown"),
        ("gptq-w2a16-g128", "gptq is offered as w3a16, w4a16, w8a8"),
        ("awq-w8a8", "awq is offered as"),
        ("gptq-w4a16-g100", "groups of 32, 64, 128"),
        ("smoothquant-w8a8-g128", "one scale per row"),
        ("rtn-w8a8-asym", "zero points (-asym) are allowed only with a16"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name, line):
    with pytest.raises(InputError) as caught:
        schemes.parse(name)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "fp8_dynamic", "fp8-dynamic", "rtn-fp8-dynamic"])
def test_a_preset_is_called_as_compressed_tensors_calls_it_or_in_small_letters(name):
    scheme = schemes.parse(name)
    assert (scheme.method, scheme.preset, scheme.weight_bits, scheme.calibrated) == ("rtn", "fp8-dynamic", 8, False)
    assert scheme.name == name.lower().replace("_", "-")


def test_the_table_is_that_of_compressed_tensors():
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    assert {schemes.canonical(name) for name in PRESET_SCHEMES} - {"unquantized"} == schemes.PRESETS.keys()
    for name, held in schemes.PRESETS.items():
        preset = PRESET_SCHEMES[name.upper().replace("-", "_")]
        weights, acts = preset["weights"], preset.get("input_activations")
        assert (held.kind.rstrip("48").replace("fp", "float"), held.bits, held.symmetric) == (
            weights.type,
            weights.num_bits,
            weights.symmetric,
        )
        assert held.group == (weights.group_size or (weights.block_structure or [None])[-1])
        assert held.activation_bits == (acts.num_bits if acts else 16)
        assert held.static == bool(acts and acts.dynamic is not True)


@pytest.mark.parametrize(("preset", "ours"), [("w4a16", "rtn-w4a16-g128"), ("w4a16-asym", "rtn-w4a16-g128-asym"), ("w8a8", "rtn-w8a8")])
def test_a_preset_of_integers_is_what_our_own_name_says(preset, ours):
    (mine,), (other,) = (schemes.recipe_of(schemes.parse(name)) for name in (preset, ours))
    assert mine.config_groups == other.config_groups


def test_nvfp4_needs_groups_of_16():
    with pytest.raises(InputError, match=r"nvfp4: groups of 16 do not divide the 200 columns of up; this format has no other; fp8-dynamic"):
        schemes.check_widths(schemes.parse("nvfp4"), {"up": (64, 200)})


def test_autoround_is_asked_for_before_work(monkeypatch):
    monkeypatch.setattr(schemes, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"autoround-w4a16-g128 needs AutoRound: pip install 'stepmend\[autoround\]'"):
        schemes.check_installed(schemes.parse("autoround-w4a16-g128"))
    schemes.check_installed(schemes.parse("gptq-w4a16-g128"))


def test_a_group_that_does_not_divide_a_width_is_said_with_those_that_do():
    linears = {"layers.0.q_proj": (896, 896), "layers.0.down_proj": (896, 4864)}
    schemes.check_widths(schemes.parse("rtn-w4a16-g128"), linears)
    with pytest.raises(InputError, match=r"groups of 128 do not divide the 192 columns of layers.0.o_proj; groups of 32, 64 do"):
        schemes.check_widths(schemes.parse("rtn-w4a16-g128"), {**linears, "layers.0.o_proj": (896, 192)})


def test_the_table_needs_no_torch():
    code = "import sys; from stepmend.quantize import schemes; schemes.listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
