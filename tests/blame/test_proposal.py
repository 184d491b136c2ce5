"""A proposal stays within its size, gives bits where they are worth most, and is a recipe that llm-compressor takes."""

import json
from pathlib import Path

import pytest
import yaml

from stepmend import InputError, formats
from stepmend.blame import proposal
from stepmend.blame.modules import Module
from stepmend.models import load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes

FULL = str(CHECKPOINTS / "qwen2")
MODULES = [Module(name, 0, name, weights, 3, 3.125) for name, weights in {"a": 100, "b": 100, "c": 200}.items()]


@pytest.mark.parametrize(
    ("values", "budget", "wide"),
    [
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 3.125 + 5 * 100 / 400, {"b": 8}),
        ({"a": 1.0, "b": 2.0, "c": 5.0}, 3.125 + 5 * 200 / 400, {"c": 8}),
        ({"a": 1.0, "b": 2.0, "c": 5.0}, 3.125 + 5 * 199 / 400, {"b": 8}),  # the best does not fit
        ({"a": 1.0, "b": 2.0, "c": -5.0}, 15.0, {"a": 16, "b": 16}),  # what rounding helped stays rounded
        ({"a": 0.0, "b": 0.0, "c": 0.0}, 15.0, {}),
    ],
)
def test_bits_go_where_they_are_worth_most(values, budget, wide):
    found = proposal.propose(MODULES, values, budget)
    assert found == wide
    assert proposal.size_of(MODULES, found) <= budget + 1e-9


def test_size_counts_codes_and_scales():
    assert proposal.size_of(MODULES) == 3.125
    assert proposal.size_of(MODULES, {"a": 8}) == pytest.approx((100 * 8.125 + 300 * 3.125) / 400)
    assert proposal.size_of(MODULES, {"c": 16}) == pytest.approx((200 * 3.125 + 200 * 16) / 400)


@pytest.mark.parametrize(
    ("budget", "columns", "name"),
    [
        (3.5, 256, "rtn-w3a16-g32"),
        (3.4, 256, "rtn-w3a16-g64"),
        (3.2, 256, "rtn-w3a16-g128"),
        (4.2, 256, "w4a16"),
        (9.0, 256, "w8a16"),
        (3.5, 192, "rtn-w3a16-g32"),
        (3.2, 192, "rtn-w3a16-g128"),  # nothing fits: the scheme itself
    ],
)
def test_uniform_bits_are_the_largest_of_that_size(budget, columns, name):
    assert proposal.uniform(schemes.parse("rtn-w3a16-g128"), MODULES, {"a": (64, columns)}, budget).name == name


@pytest.mark.parametrize("budget", [0.0, 3.125, 16.0, -1.0])
def test_a_budget_that_will_not_do_is_refused(budget):
    with pytest.raises(InputError, match="--budget"):
        proposal.check_budget(FULL, "rtn-w3a16-g128", budget)


def test_a_budget_is_checked_against_what_the_files_take():
    proposal.check_budget(FULL, "rtn-w3a16-g128", 3.13)
    proposal.check_budget(FULL, "rtn-w3a16", 3.06)  # one scale for 256 or 512 columns
    with pytest.raises(InputError, match=r"3\.05"):
        proposal.check_budget(FULL, "rtn-w3a16", 3.05)
    with pytest.raises(InputError, match=r"3\.148"):
        proposal.check_budget(FULL, "rtn-w3a16-g128-asym", 3.13)


def bits(folder: Path) -> dict[str, int]:
    low_bit = formats.detect(folder)
    assert low_bit
    return {name: layer.bits for name, layer in low_bit.layers.items()}


def test_the_recipe_makes_the_measured_checkpoint(tmp_path):
    from llmcompressor import oneshot  # pyright: ignore[reportPrivateImportUsage]

    scheme = schemes.parse("rtn-w3a16-g128")
    wide = {"model.layers.1.mlp.down_proj": 8, "model.layers.2.self_attn.k_proj": 16}
    proposal.write(FULL, scheme.name, wide, tmp_path / "proposal")
    ignored = json.loads((tmp_path / "proposal" / proposal.IGNORE).read_text())
    assert ignored[-1] == "model.layers.2.self_attn.k_proj"
    recipe = tmp_path / "proposal" / proposal.RECIPE
    (modifier,) = yaml.safe_load(recipe.read_text())["default_stage"]["default_modifiers"].values()
    assert modifier["config_groups"]["group_0"]["targets"] == ["model.layers.1.mlp.down_proj"]

    quantizer.quantize(FULL, scheme, [], tmp_path / "ours", wide)
    model = load.pretrained(FULL, dtype="float32")
    with quantizer._quiet(tmp_path):
        oneshot(model=model, recipe=str(recipe), pipeline="datafree")
        model.save_pretrained(tmp_path / "theirs", save_compressed=True)
    found = bits(tmp_path / "ours")
    assert found == bits(tmp_path / "theirs")
    assert found["model.layers.1.mlp.down_proj"] == 8
    assert "model.layers.2.self_attn.k_proj" not in found
    assert set(found.values()) == {3, 8}
    mine, theirs = (formats.detect(tmp_path / name) for name in ("ours", "theirs"))
    assert mine and theirs
    for name in found:  # ours are rounded against scales in the parent's dtype
        assert float((mine.codes(name).codes_MN == theirs.codes(name).codes_MN).float().mean()) > 0.95, name


def test_only_what_wins_is_offered(tmp_path):
    block = {"budget": 3.5, "wins": True, "wide": {"model.layers.1.mlp.down_proj": 8}}
    proposal.offer(FULL, "rtn-w3a16-g128", [block], tmp_path)
    assert (tmp_path / "rtn-w3a16-g128-3.5" / proposal.RECIPE).exists()
    proposal.offer(FULL, "rtn-w3a16-g128", [{**block, "wins": False}], tmp_path)
    assert not any(tmp_path.iterdir())
