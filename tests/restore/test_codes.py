"""Codes solved again: the sums they minimise, every format they are stored in, and what stays as it was."""

import pytest
import torch
from safetensors.torch import load_file

from stepmend import InputError
from stepmend.keys import Restore
from stepmend.models import load
from stepmend.restore import codes, scales, tune
from stepmend.restore import grid as grids
from stepmend.restore.objectives import chosen_row
from stepmend.restore.validation import Readings, Solution
from tests.restore.made import bullets, each, quantized
from tests.texts import calibration_texts

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs

FORMATS = ["rtn-w3a16", "rtn-w4a16-g64-asym", "gptq-w3a16-g128-asym", "awq-w4a16-g128", "smoothquant-w8a8", "rtn-w8a8", "rtn-w4a16-g64-kv8"]


def solutions(parent: str, count: int = 12) -> list[Solution]:
    """Solutions of the built-in problems, as a model could have written them."""
    tokenizer = load.load_tokenizer(parent)
    found = []
    for i, text in enumerate(calibration_texts(tokenizer, count)):
        cut = len(text) // 3
        found.append(Solution(f"p{i}", text[:cut], tuple(tokenizer(text[cut:], add_special_tokens=False)["input_ids"])))
    return found


def problem(rows: int = 24, columns: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, grids.Grid]:
    """A weight, a Hessian of correlated inputs, and a 3-bit grid with two scales a row."""
    draw = torch.Generator().manual_seed(seed)
    weight_MN = torch.randn(rows, columns, generator=draw)
    inputs_TN = torch.randn(400, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    scale_MG = weight_MN.view(rows, 2, -1).abs().amax(2) / 3.5
    return weight_MN, inputs_TN.T @ inputs_TN, grids.Grid(scale_MG, torch.zeros_like(scale_MG), -4, 3, columns)


def nearest(weight_MN: torch.Tensor, grid: grids.Grid) -> torch.Tensor:
    return (weight_MN / grid.code_scales).round().clamp(grid.low, grid.high)


def test_independent_inputs_are_rounded_to_the_nearest():
    weight_MN, _, grid = problem()
    found = grids.gptq(weight_MN, torch.eye(64), grid), grids.descend(weight_MN, torch.eye(64), grid, torch.zeros_like(weight_MN))
    for solved in found:
        assert torch.equal(solved, nearest(weight_MN, grid))


def test_each_method_lowers_the_sum_further_and_stays_on_the_grid():
    for seed in range(5):
        weight_MN, hessian_NN, grid = problem(seed=seed)
        compensated = grids.gptq(weight_MN, grids.damped(hessian_NN), grid)
        found = [nearest(weight_MN, grid), compensated, grids.descend(weight_MN, hessian_NN, grid, compensated)]
        errors = [grids.error(weight_MN, hessian_NN, grid.dequantize(one)) for one in found]
        assert errors[1] < 0.7 * errors[0]
        assert errors[2] < errors[1]
        assert all(one.min() >= grid.low and one.max() <= grid.high and torch.equal(one, one.round()) for one in found)


def test_scales_by_least_squares_have_no_slope_left():
    weight_MN, hessian_NN, grid = problem()
    found = grids.gptq(weight_MN, hessian_NN, grid)
    before = grids.error(weight_MN, hessian_NN, grid.dequantize(found))
    scale_MG = grids.rescale(weight_MN, hessian_NN, grid, found).requires_grad_()
    values_MN = (found.view(24, 2, -1) * scale_MG[:, :, None]).view(24, -1)
    rest_MN = weight_MN - values_MN
    left = ((rest_MN @ hessian_NN) * rest_MN).sum()
    (slope_MG,) = torch.autograd.grad(left, scale_MG)
    assert float(left) < before
    assert float((slope_MG * scale_MG).abs().max()) < 1e-3 * before


def test_a_group_of_zeros_keeps_its_scale():
    weight_MN, hessian_NN, grid = problem()
    assert torch.equal(grids.rescale(weight_MN, hessian_NN, grid, torch.zeros_like(weight_MN)), grid.scale_MG)


def test_no_single_code_can_be_moved_to_a_lower_sum():
    weight_MN, hessian_NN, grid = problem(rows=4, columns=16)
    found = grids.gptq(weight_MN, hessian_NN, grid)
    for _ in range(10):
        found = grids.descend(weight_MN, hessian_NN, grid, found)
    least = grids.error(weight_MN, hessian_NN, grid.dequantize(found))
    for row in range(4):
        for column in range(16):
            for step in (-1, 1):
                other = found.clone()
                other[row, column] = (other[row, column] + step).clamp(grid.low, grid.high)
                assert grids.error(weight_MN, hessian_NN, grid.dequantize(other)) >= least * (1 - 1e-5)


def test_the_corrected_weight_gives_full_precisions_outputs_from_the_low_bit_models_inputs():
    draw = torch.Generator().manual_seed(1)
    full_TN, weight_MN = torch.randn(500, 32, generator=draw), torch.randn(8, 32, generator=draw)
    low_TN = full_TN @ (torch.eye(32) + 0.1 * torch.randn(32, 32, generator=draw))
    sums = grids.Sums(32, "cpu")
    for part in range(0, 500, 100):
        sums.add(full_TN[part : part + 100], low_TN[part : part + 100], torch.ones(100), torch.arange(100) % 2)
    target_MN = grids.corrected(weight_MN, sums)
    wanted, plain, found = full_TN @ weight_MN.T, low_TN @ weight_MN.T, low_TN @ target_MN.T
    assert (found - wanted).norm() < 0.05 * (plain - wanted).norm()


def test_what_few_tokens_say_by_chance_is_not_corrected():
    draw = torch.Generator().manual_seed(3)
    weight_MN, sums = torch.randn(8, 64, generator=draw), grids.Sums(64, "cpu")
    for _ in range(4):  # as many tokens as columns, and noise that has nothing to do with the inputs
        low_TN = torch.randn(16, 64, generator=draw)
        sums.add(low_TN + torch.randn(16, 64, generator=draw), low_TN, torch.ones(16), torch.arange(16) % 2)
    assert torch.equal(grids.corrected(weight_MN, sums), weight_MN)


def left(tokens: int, share: float, seeds: int = 8) -> float:
    """The error that codes solved on so many tokens leave on other tokens, over that of rounding, on average."""
    found = 0.0
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        weight_MN = torch.randn(24, 64, generator=draw)
        mixing_NN = torch.randn(64, 64, generator=draw) * torch.logspace(0, -1, 64)[:, None]
        few_NN, other_NN = (x.T @ x for x in (torch.randn(count, 64, generator=draw) @ mixing_NN for count in (tokens, 4000)))
        scale_MG = weight_MN.view(24, 2, -1).abs().amax(2) / 3.5
        grid = grids.Grid(scale_MG, torch.zeros_like(scale_MG), -4, 3, 64)
        damped_NN = grids.damped(few_NN, share)
        solved_MN = grids.descend(weight_MN, damped_NN, grid, grids.gptq(weight_MN, damped_NN, grid))
        errors = [grids.error(weight_MN, other_NN, grid.dequantize(one)) for one in (solved_MN, nearest(weight_MN, grid))]
        found += errors[0] / errors[1] / seeds
    return found


def test_the_damping_helps_where_tokens_are_few_and_costs_little_where_they_are_many():
    assert left(32, grids.DAMP) < 0.8 * left(32, 0.01)
    assert left(400, grids.DAMP) < 1.15 * left(400, 0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_kernels_lower_the_sum_as_unrecorded_ones_do():
    for seed in range(3):  # recorded, then replayed on other values
        weight_MN, hessian_NN, grid = problem(columns=200, seed=seed)
        there = grids.Grid(grid.scale_MG.cuda(), grid.zero_MG.cuda(), grid.low, grid.high, grid.columns)
        found = []
        for weight, hessian, of in ((weight_MN, hessian_NN, grid), (weight_MN.cuda(), hessian_NN.cuda(), there)):
            codes_MN = grids.gptq(weight, grids.damped(hessian), of)
            codes_MN = grids.descend(weight, grids.damped(hessian), of, codes_MN)
            found.append(grids.error(weight, hessian, of.dequantize(codes_MN)))
        assert found[1] == pytest.approx(found[0], rel=0.02)


def test_texts_of_one_question_are_in_one_half():
    texts = [codes.Text((1, 2, 5), question=2), codes.Text((1, 3, 5), question=2), codes.Text((1, 2, 6, 7), question=2)]
    assert codes.halves(texts) == [0, 1, 0]


def test_a_beginning_that_all_texts_share_counts_as_one_texts():
    found = codes.token_weights([codes.Text((1, 2, 3, 4)), codes.Text((1, 2, 5)), codes.Text((1, 2, 3), 2.0)])
    assert found == [[1 / 3, 1 / 3, 1, 1], [1 / 3, 1 / 3, 1], [2 / 3, 2 / 3, 2]]


def test_what_a_quantizer_scaled_before_rounding_is_found_and_rounding_alone_is_not():
    draw = torch.Generator().manual_seed(2)
    weight_MN, row_M, column_N = (
        torch.randn(64, 96, generator=draw),
        torch.rand(64, generator=draw) + 0.5,
        torch.rand(96, generator=draw) * 4 + 0.2,
    )
    step = 0.1
    scaled_MN = ((row_M[:, None] * weight_MN * column_N) / step).round() * step
    rows, columns = grids.smoothing(weight_MN, scaled_MN)
    torch.testing.assert_close(rows[:, None] * columns, row_M[:, None] * column_N, rtol=0.1, atol=0.02)
    rounded_MN = (weight_MN / step).round() * step
    assert all(bool((factor == 1).all()) for factor in grids.smoothing(weight_MN, rounded_MN))


@pytest.mark.parametrize(("tiny", "scheme"), each(FORMATS), indirect=["tiny"])
def test_codes_alone_come_nearer_to_full_precision_in_every_format(tiny, scheme, tmp_path):
    quantized(tiny, scheme, tmp_path / "low")
    texts = solutions(tiny, 24)
    tuned = tune.restore(tiny, tmp_path / "low", bullets(), Restore(tune="codes"), tmp_path / "out", seed=0, anchors=texts[:16])
    assert 0 < tuned.moved < 1
    assert tuned.losses == []
    before, after = load_file(tmp_path / "low/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    kinds = {name.rpartition(".")[2] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert kinds == {"weight" if "w8" in scheme else "weight_packed"}
    assert (tmp_path / "low/model.safetensors").stat().st_size == (tmp_path / "out/model.safetensors").stat().st_size
    tokenizer = load.load_tokenizer(tiny)
    held = Readings(load.load_model(tiny), [text.row(tokenizer) for text in texts[16:]], tokenizer.pad_token_id)
    one, other = (sum(held.divergences(load.load_model(str(tmp_path / name)))) for name in ("low", "out"))
    assert other < one


@pytest.mark.parametrize("what", ["codes+scales", "codes+norms", "codes+scales+norms"])
def test_codes_go_with_what_is_tuned_and_what_is_exported_is_what_was_trained(tiny_llama, low_bit, tmp_path, what):
    recipe = Restore.model_validate({"tune": what, "steps": 12, "batch_size": 4})
    tuned = tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "out", seed=0)
    tokenizer = load.load_tokenizer(tiny_llama)
    taught = Readings(load.load_model(tiny_llama), [chosen_row(tokenizer, b, "whole") for b in bullets()], tokenizer.pad_token_id)
    one, other = (sum(taught.divergences(load.load_model(str(folder)))) for folder in (low_bit, tmp_path / "out"))
    assert other < one
    assert tuned.export_error < 1e-3
    before, after = load_file(low_bit / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert any(name.endswith("weight_packed") for name in changed)
    assert any(name.endswith("weight_scale") for name in changed) == ("scales" in what)
    assert any("norm" in name for name in changed) == ("norms" in what)


def test_a_stopped_restoration_does_not_solve_again_and_ends_in_the_same_bytes(tiny_llama, low_bit, tmp_path, monkeypatch):
    recipe = Restore(steps=4)
    tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "whole", seed=0)

    def stop(done: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "out", seed=0, tick=stop)
    assert (tmp_path / "out.codes.state").exists()
    monkeypatch.setattr(codes, "solve", None)
    tune.restore(tiny_llama, low_bit, bullets(), recipe, tmp_path / "out", seed=0)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.state"))


def test_a_code_outside_of_the_format_is_refused(low_bit):
    layer = next(iter(scales.scales(scales.attach(str(low_bit), Restore())).values()))
    assert layer.range == (-4, 3)
    with pytest.raises(ValueError, match="3 bits hold -4 to 3"):
        layer.set_codes(layer.codes() + 7)


def test_a_scale_keeps_its_sign_and_a_floor(low_bit):
    layer = next(iter(scales.scales(scales.attach(str(low_bit), Restore())).values()))
    start = layer.scale().detach().clone()
    with torch.no_grad():
        layer.change.fill_(-3.0)
    assert torch.allclose(layer.scale(), scales.FLOOR * start, rtol=1e-2)
    with pytest.raises(InputError, match="became zero, changed its sign or is not finite"):
        scales.check_scales("a layer", start, torch.zeros_like(start))
    with pytest.raises(InputError, match="changed its sign"):
        scales.check_scales("a layer", start, -start)
