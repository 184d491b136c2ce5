"""Recorded kernels: the values of a plain call, and a plain call where recording fails."""

import pytest
import torch

from stepmend.models import graphs

FEW = torch.tensor([1.0, 2.0])


def test_a_function_that_cannot_be_recorded_is_called_as_it_is(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs.Recorded, "__call__", fail)
    double = graphs.Tried(lambda given, *, times: (given * times,))
    assert [double(FEW, times=2)[0].tolist() for _ in range(3)] == [[2.0, 4.0]] * 3
    assert double.plain


def test_running_out_of_memory_is_no_reason_to_go_on(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        try:
            raise torch.OutOfMemoryError("no more")
        except torch.OutOfMemoryError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904  as CUDA says it

    monkeypatch.setattr(graphs.Recorded, "__call__", fail)
    double = graphs.Tried(lambda given: (given * 2,))
    double(FEW)
    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        double(FEW)
    assert not double.plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replay_gives_the_values_of_a_plain_call():
    held = torch.zeros(4, device="cuda")

    def write(given: torch.Tensor, *, place: int) -> tuple[torch.Tensor]:
        held[place] = given.sum()
        return (held * 2,)

    tried = graphs.Tried(write)
    for place, value in ((0, 1.0), (0, 3.0), (0, 5.0), (2, 7.0), (2, 8.0), (0, 1.0)):
        found = tried(torch.full((3,), value, device="cuda"), place=place)[0].clone()
        assert held[place] == 3 * value
        assert torch.equal(found, held * 2)
    assert len(tried.recorded) == 2
    assert not tried.plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_function_that_reads_values_back_is_called_as_it_is():
    tried = graphs.Tried(lambda given: (given * given.sum().item(),))
    assert [tried(FEW.cuda())[0].tolist() for _ in range(3)] == [[3.0, 6.0]] * 3
    assert tried.plain
    assert torch.zeros(2, device="cuda").sum().item() == 0  # the device still works
