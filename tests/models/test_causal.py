"""Models that are not causal are refused before work, and no others; configuration values that differ by layer."""

import pytest
import torch
import transformers

import stepmend
from benchmarks import family_models
from stepmend import InputError
from stepmend.models import causal, configs, load, reasoner
from stepmend.quantize import run, schemes

pytestmark = pytest.mark.filterwarnings("ignore")
ENCODERS = ("bert", "roberta", "electra", "rembert", "roformer")
BOTH_WAYS = ("xlnet", "cpmant", "prophetnet", "doge", "xlm")
CAUSAL = ("llama", "bart", "gpt_neox_japanese", "mamba", "bloom", "qwen3_next", "olmoe")


def meta(family: str) -> object:
    config = family_models.small(transformers.models.auto.configuration_auto.CONFIG_MAPPING[family], family, 300)
    with torch.device("meta"):
        return load.kind_of(config)(config)


@pytest.mark.parametrize("family", [*ENCODERS, *BOTH_WAYS])
def test_what_reads_both_ways_is_refused_with_and_without_numbers(family):
    with pytest.raises(InputError, match=r"^model: [\w-]+ (is an encoder here|is not causal|attends to later tokens)"):
        causal.refuse(meta(family))
    with pytest.raises(InputError, match=r"^model: [\w-]+ is not causal"):
        causal.check(family_models.build(family, 300).eval())


@pytest.mark.parametrize("family", CAUSAL)
def test_what_reads_from_left_to_right_is_not(family):
    causal.refuse(meta(family))
    causal.check(family_models.build(family, 300).eval())


def test_what_transformers_cannot_compute_is_one_line():
    with pytest.raises(InputError, match=r"^model: xlstm cannot be computed in this release of transformers \(matC_old has wrong shape"):
        causal.check(family_models.build("xlstm", 300).eval())


def test_check_and_quantize_refuse_an_encoder(tmp_path):
    family_models.build("bert", 300).save_pretrained(tmp_path)
    reasoner.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bert is an encoder here"):
        stepmend.check(str(tmp_path), ["rtn-w4a16-g32"])
    with pytest.raises(InputError, match="bert is an encoder here"):
        run.quantize(str(tmp_path), schemes.parse("rtn-w4a16-g32"), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen3_5", "llama4"])
def test_a_type_with_a_text_model_of_another_configuration_is_what_its_configuration_names(family, tmp_path):
    model = family_models.build(family, 300)
    model.save_pretrained(tmp_path)
    config = load.config_of(str(tmp_path))
    assert load.kind_of(config) is type(model)
    assert sum(p.numel() for p in load.skeleton(config).parameters()) == sum(p.numel() for p in model.parameters())


def test_numbers_that_differ_from_layer_to_layer():
    config = meta("gemma4_unified_text").config  # pyright: ignore[reportAttributeAccessIssue]
    widths = [layer.head_dim for layer in config.per_layer_config]
    assert len(set(widths)) > 1
    assert configs.number(config, "head_dim") == max(widths)
    assert configs.heads(config)[2] == max(widths)
    assert configs.number(config, "no_such_number") is None
    assert configs.heads(meta("mamba2").config)[0] == 8  # pyright: ignore[reportAttributeAccessIssue]
    assert configs.inner(meta("falcon").config) == 4 * 64  # pyright: ignore[reportAttributeAccessIssue]
