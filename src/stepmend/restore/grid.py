"""Integer codes and their scales solved again in closed form, decoder layer by decoder layer, against full precision's outputs.

For a linear layer with full-precision weight W, let x be its input in full precision and z its input in the low-bit model, with every
layer before it solved already, over the tokens t of the given texts, each with a weight. The codes Q are to minimise

    sum_t weight_t * |W x_t - dequantized(Q) z_t|^2 .

With H = sum weight z z^T this is tr (W' - dequantized(Q)) H (W' - dequantized(Q))^T plus a constant, where W' = W + W C H^-1 and
C = sum weight (x - z) z^T: full precision's weight, corrected for what the layers before have changed (GPTAQ, 2504.02692, uses this
asymmetry too). The corrected weight is rounded column by column with error compensation (GPTQ, 2210.17323). Then two steps alternate:
the scales of a row's groups by least squares, where scales are restored too, and each code in turn to where the sum is least (coordinate
descent, QuantEase, 2309.01885). Neither raises the sum, except the rounding of scales to the dtype of the file. Zero points and the
range of codes do not change, as do offsets, which are taken off the corrected weight first.

Tensor names carry their shape: M rows (of all linear layers that read one input), N columns, G groups of a row, S columns of a group,
K columns of a block, T tokens, B texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepmend.models.graphs import Recorded
from stepmend.restore.scales import ScaleLinear

DAMP = 0.1
"""Damping: added to the diagonal of H, as a share of its mean. GPTQ uses 0.01, which overfits with few tokens (see docs/log.md)."""
RIDGES = (0.01, 0.1, 1.0)
"""Shares of H's mean diagonal that are tried as a ridge of the correction."""
ROUNDS = 2
"""How often scales and codes are solved in turn after GPTQ."""
BLOCK = 128
"""Columns whose errors are passed on together (GPTQ's lazy batches)."""
SMOOTHED = 0.8
"""A checkpoint counts as scaled before rounding where scaling leaves at most this share of the distance between both weights."""
ZERO = 1e-30
"""What a scale of 0 counts as: whatever the codes of a group of zeros, they stand for 0 once this is rounded to its file's dtype."""
LEAST, MOST = 0.25, 4.0
"""How far least squares may move a scale, as a factor of its start."""


@dataclass
class Grid:
    """What the codes may be: ``scale_MG`` as stored and ``zero_MG`` (float32), and the range of the format."""

    scale_MG: torch.Tensor
    zero_MG: torch.Tensor
    low: int
    high: int
    columns: int

    @classmethod
    def of(cls, layers: Sequence[ScaleLinear]) -> "Grid":
        """The grid of layers of one format and width, their rows one after the other."""
        scale_MG = torch.cat([layer.scale().detach().float() for layer in layers])
        zeros = [torch.zeros_like(layer.scale()) if layer.zeros_MG is None else layer.zeros_MG for layer in layers]
        return cls(_divisible(scale_MG), torch.cat(zeros).float(), *layers[0].range, layers[0].centred_MN.shape[1])

    @property
    def code_scales(self) -> torch.Tensor:
        """The scale of every code."""
        return self.scale_MG.repeat_interleave(self.columns // self.scale_MG.shape[1], dim=1)

    @property
    def code_zeros(self) -> torch.Tensor:
        """The zero point of every code."""
        return self.zero_MG.repeat_interleave(self.columns // self.zero_MG.shape[1], dim=1)

    def dequantize(self, codes_MN: torch.Tensor) -> torch.Tensor:
        return (codes_MN - self.code_zeros) * self.code_scales


def error(weight_MN: torch.Tensor, hessian_NN: torch.Tensor, values_MN: torch.Tensor) -> float:
    """tr (weight - values) H (weight - values)^T."""
    rest_MN = weight_MN - values_MN
    return float(((rest_MN @ hessian_NN) * rest_MN).sum())


def damped(hessian_NN: torch.Tensor, share: float = DAMP) -> torch.Tensor:
    """H with a share of its mean diagonal added to the diagonal, so that it is invertible even after few tokens."""
    damped_NN, mean = hessian_NN.clone(), hessian_NN.diagonal().mean()
    damped_NN.diagonal().add_(share * mean if mean > 0 else 1.0)
    return damped_NN


def correction(weight_MN: torch.Tensor, hessian_NN: torch.Tensor, cross_NN: torch.Tensor, ridge: float) -> torch.Tensor:
    """W C H^-1, [M, N], with H damped by ``ridge``."""
    return torch.cholesky_solve((weight_MN @ cross_NN).T, torch.linalg.cholesky(damped(hessian_NN, ridge))).T


def corrected(weight_MN: torch.Tensor, sums: "Sums") -> torch.Tensor:
    """W' = W + W C H^-1: the weight that maps the low-bit model's inputs to full precision's outputs best.

    Few tokens determine it badly. The ridge is therefore the one of ``RIDGES`` that does best on every other question's texts when it is
    fitted on the rest; and if none does better than W itself, there is no correction.
    """
    fitted, other = sums.halves
    best, chosen = 0.0, None
    for ridge in RIDGES:
        step_MN = correction(weight_MN, fitted.hessian_NN, fitted.cross_NN, ridge)
        change = float(((step_MN @ other.hessian_NN - 2 * (weight_MN @ other.cross_NN)) * step_MN).sum())
        if change < best:
            best, chosen = change, ridge
    return weight_MN if chosen is None else weight_MN + correction(weight_MN, sums.hessian, sums.cross, chosen)


def smoothing(weight_MN: torch.Tensor, low_MN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of rows [M] and columns [N] by which a quantizer scaled full precision's weight before it rounded (AWQ, SmoothQuant).

    They are found from both weights by alternating least squares, and are 1 where they explain no more than rounding does.
    """
    row_M, column_N = torch.ones_like(weight_MN[:, 0]), torch.ones_like(weight_MN[0])
    for _ in range(4):
        scaled_MN = weight_MN * column_N
        row_M = (scaled_MN * low_MN).sum(1) / scaled_MN.square().sum(1).clamp(min=1e-20)
        scaled_MN = weight_MN * row_M[:, None]
        column_N = (scaled_MN * low_MN).sum(0) / scaled_MN.square().sum(0).clamp(min=1e-20)
    plain, left = (low_MN - weight_MN).norm(), (low_MN - row_M[:, None] * weight_MN * column_N).norm()
    if left > SMOOTHED * plain or not bool((column_N > 0).all()):
        return torch.ones_like(row_M), torch.ones_like(column_N)
    return row_M, column_N


@Recorded
def round_block(
    left_KM: torch.Tensor, scale_KM: torch.Tensor, zero_KM: torch.Tensor, upper_KK: torch.Tensor, *, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPTQ within a block of columns: their codes, and their errors over the diagonal of ``upper_KK``, both [K, M]."""
    left_KM, codes_KM, errors_KM = left_KM.clone(), torch.empty_like(left_KM), torch.empty_like(left_KM)
    for j in range(len(left_KM)):
        code_M = codes_KM[j] = (left_KM[j] / scale_KM[j] + zero_KM[j]).round_().clamp_(low, high)
        errors_KM[j] = (left_KM[j] - (code_M - zero_KM[j]) * scale_KM[j]) / upper_KK[j, j]
        left_KM[j + 1 :].addr_(upper_KK[j, j + 1 :], errors_KM[j], alpha=-1)
    return codes_KM, errors_KM


@Recorded
def descend_block(
    slope_KM: torch.Tensor, codes_KM: torch.Tensor, scale_KM: torch.Tensor, hessian_KK: torch.Tensor, *, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinate descent within a block of columns: their codes, and by how much their values moved, both [K, M]."""
    slope_KM, codes_KM, moved_KM = slope_KM.clone(), codes_KM.clone(), torch.empty_like(codes_KM)
    for j in range(len(slope_KM)):
        code_M = (codes_KM[j] + slope_KM[j] / hessian_KK[j, j] / scale_KM[j]).round_().clamp_(low, high)
        moved_KM[j] = (code_M - codes_KM[j]) * scale_KM[j]
        codes_KM[j] = code_M
        slope_KM.addr_(hessian_KK[j], moved_KM[j], alpha=-1)
    return codes_KM, moved_KM


def gptq(weight_MN: torch.Tensor, hessian_NN: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes by error-compensating rounding (2210.17323), columns of large inputs first: float32 [M, N]."""
    columns = weight_MN.shape[1]
    order_N = hessian_NN.diagonal().argsort(descending=True)
    inverse_NN = torch.cholesky_inverse(torch.linalg.cholesky(hessian_NN[order_N][:, order_N]))
    upper_NN = torch.linalg.cholesky(inverse_NN, upper=True)
    # One column after the other is read and written: rows of the transposed tensors lie together in memory.
    left_NM, scale_NM, zero_NM = (tensor[:, order_N].T.contiguous() for tensor in (weight_MN, grid.code_scales, grid.code_zeros))
    codes_NM = torch.empty_like(left_NM)
    for start in range(0, columns, BLOCK):
        block = slice(start, start + BLOCK)
        codes_NM[block], errors_KM = round_block(
            left_NM[block], scale_NM[block], zero_NM[block], upper_NN[block, block], low=grid.low, high=grid.high
        )
        left_NM[block.stop :] -= upper_NN[block, block.stop :].T @ errors_KM
    codes_MN = torch.empty_like(weight_MN)
    codes_MN[:, order_N] = codes_NM.T
    return codes_MN


def descend(weight_MN: torch.Tensor, hessian_NN: torch.Tensor, grid: Grid, codes_MN: torch.Tensor) -> torch.Tensor:
    """Every code moved, one column after the other, to where the sum is least (2309.01885)."""
    columns = weight_MN.shape[1]
    slope_NM = hessian_NN @ (weight_MN - grid.dequantize(codes_MN)).T
    codes_NM, scale_NM = codes_MN.T.contiguous(), grid.code_scales.T.contiguous()
    for start in range(0, columns, BLOCK):
        block = slice(start, start + BLOCK)
        codes_NM[block], moved_KM = descend_block(
            slope_NM[block], codes_NM[block], scale_NM[block], hessian_NN[block, block], low=grid.low, high=grid.high
        )
        slope_NM -= hessian_NN[:, block] @ moved_KM
    return codes_NM.T.contiguous()


def rescale(weight_MN: torch.Tensor, hessian_NN: torch.Tensor, grid: Grid, codes_MN: torch.Tensor) -> torch.Tensor:
    """The scales of every row's groups that minimise the sum for these codes, by least squares: [M, G].

    A row without a usable solution (no code but zero in a group, or a scale beyond ``LEAST`` to ``MOST`` times its start) keeps its own.
    """
    rows, groups = grid.scale_MG.shape
    centred_MN = codes_MN - grid.code_zeros
    centred_MGS = centred_MN.view(rows, groups, -1)
    products_MGG = weight_MN.new_empty(rows, groups, groups)
    for group, (part_MS, part_SN) in enumerate(zip(centred_MGS.unbind(1), hessian_NN.chunk(groups), strict=True)):
        products_MGG[:, group] = ((part_MS @ part_SN).view(rows, groups, -1) * centred_MGS).sum(-1)
    wanted_MG = ((weight_MN @ hessian_NN).view(rows, groups, -1) * centred_MGS).sum(-1)
    scale_MG, failed = torch.linalg.solve_ex(products_MGG, wanted_MG)
    share_MG = scale_MG / grid.scale_MG
    usable_M = (failed == 0) & (share_MG.isfinite() & (share_MG > LEAST) & (share_MG < MOST)).all(1)
    return torch.where(usable_M[:, None], scale_MG, grid.scale_MG)


@dataclass
class Half:
    """H and C over one half of the texts: see the head of this file."""

    hessian_NN: torch.Tensor
    cross_NN: torch.Tensor


class Sums:
    """H and C of the linear layers that read the same input, over two halves of the texts."""

    def __init__(self, width: int, device: Any) -> None:
        self.halves = tuple(Half(*(torch.zeros(width, width, device=device) for _ in range(2))) for _ in range(2))

    def add(self, full_TN: torch.Tensor, low_TN: torch.Tensor, weight_T: torch.Tensor, half_T: torch.Tensor) -> None:
        """Add tokens, in float32, each to the half that ``half_T`` names (0 or 1)."""
        for number, half in enumerate(self.halves):
            mine_T = half_T == number
            inputs_TN, weighted_TN = low_TN[mine_T].float(), low_TN[mine_T].float() * weight_T[mine_T, None]
            half.hessian_NN.addmm_(weighted_TN.T, inputs_TN)
            half.cross_NN.addmm_((full_TN[mine_T].float() - inputs_TN).T, weighted_TN)

    @property
    def hessian(self) -> torch.Tensor:
        """H over all texts."""
        return self.halves[0].hessian_NN + self.halves[1].hessian_NN

    @property
    def cross(self) -> torch.Tensor:
        """C over all texts."""
        return self.halves[0].cross_NN + self.halves[1].cross_NN


def resolve(layers: Sequence[ScaleLinear], weight_MN: torch.Tensor, sums: Sums, rescaled: bool) -> int:
    """Solve the linear layers that read one input, their rows one after the other; gives how many codes moved.

    They keep codes and scales where those are as good.
    """
    grid, before_MN = Grid.of(layers), torch.cat([layer.codes() for layer in layers]).float()
    target_MN = corrected(weight_MN, sums) - torch.cat([layer.offset() + torch.zeros_like(layer.centred_MN) for layer in layers]).float()
    hessian_NN = damped(sums.hessian)
    start = error(target_MN, hessian_NN, grid.dequantize(before_MN))
    codes_MN = gptq(target_MN, hessian_NN, grid)
    for _ in range(ROUNDS):
        if rescaled:
            grid.scale_MG = _as_stored(layers, rescale(target_MN, hessian_NN, grid, codes_MN))
        codes_MN = descend(target_MN, hessian_NN, grid, codes_MN)
    if not error(target_MN, hessian_NN, grid.dequantize(codes_MN)) < start:
        return 0
    counts = [layer.centred_MN.shape[0] for layer in layers]
    for layer, part_MN, scale_MG in zip(layers, codes_MN.split(counts), grid.scale_MG.split(counts), strict=True):
        layer.set_codes(part_MN)
        layer.solved = True
        if rescaled:
            layer.set_scale(scale_MG)
    return int((codes_MN != before_MN).sum())


def _as_stored(layers: Sequence[ScaleLinear], scale_MG: torch.Tensor) -> torch.Tensor:
    """Scales rounded to the dtype of their file."""
    return _divisible(scale_MG.to(layers[0].stored.storage).float())


def _divisible(scale_MG: torch.Tensor) -> torch.Tensor:
    return torch.where(scale_MG == 0, ZERO, scale_MG)
