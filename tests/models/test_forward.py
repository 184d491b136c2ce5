"""One pass over texts: what it gives does not depend on which texts go through together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepmend.models import forward, load
from tests.texts import logits


def test_every_place_is_read_in_the_order_asked(tiny):
    model = load.load_model(tiny)
    rows = [[7, 8, 9], list(range(5, 45)), [4] * 38, [6, 5]]  # three groups of like length
    where = [(3, 1), (1, 0), (0, 2), (2, 37), (1, 39), (0, 0)]
    with torch.no_grad():
        states_NH = forward.states_of(model, rows, where, pad=0)
        for state_H, (row, place) in zip(states_NH, where, strict=True):
            alone_TH = forward.hidden_of(model, torch.tensor([rows[row]], device=model.device), [(0, place)])
            torch.testing.assert_close(state_H, alone_TH[0], rtol=1e-4, atol=1e-4)


def test_losses_and_divergences_are_those_of_plain_logits(tiny, tiny_llama):
    one, other = load.load_model(tiny), load.load_model(tiny_llama)
    rows, starts = [[7, 8, 9, 4], list(range(5, 45)), [6, 5]], [1, 30, 1]
    with torch.no_grad():
        said = [[logits(m, row).double().log_softmax(-1) for row in rows] for m in (one, other)]
    for i, (row, begin) in enumerate(zip(rows, starts, strict=True)):
        p_TV, q_TV = (of[i][begin - 1 : -1] for of in said)
        loss = -p_TV.gather(1, torch.tensor(row[begin:])[:, None]).mean().item()
        assert forward.losses(one, rows, starts, 0)[i] == pytest.approx(loss, rel=1e-4)
        kl = (p_TV.exp() * (p_TV - q_TV)).sum(-1).mean().item()  # the first from the second, not the other way round
        assert forward.divergences(one, other, rows, starts, 0)[i] == pytest.approx(kl, rel=1e-3, abs=1e-6)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.sampled_from(["cpu", "cuda"]))
def test_groups_hold_every_text_once_and_little_padding(lengths, kind):
    groups = forward.length_groups(lengths, torch.device(kind))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert min(lengths[i] for i in group) >= forward.SIMILAR[kind] * max(lengths[i] for i in group)
