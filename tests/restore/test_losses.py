"""What tuning moves towards: which tokens count, and what each objective is of them."""

from contextlib import nullcontext

import pytest
import torch

from stepmend.keys import Restore
from stepmend.models import forward, load
from stepmend.restore import objectives, scales
from stepmend.restore.losses import Loss
from tests.restore.made import bullets
from tests.texts import logits

pytestmark = pytest.mark.filterwarnings("ignore")  # llm-compressor and its own libraries warn of their own affairs


@pytest.mark.parametrize(("span", "text"), [
    ("step", "Step 2: 10 + 20 = 30\n"),
    ("prefix", "Step 1: 10 + 1 = 11\nStep 2: 10 + 20 = 30\n"),
    ("tail", "Step 2: 10 + 20 = 30\n\\boxed{30}"),
    ("whole", "Step 1: 10 + 1 = 11\nStep 2: 10 + 20 = 30\n\\boxed{30}"),
])  # fmt: skip
def test_a_span_targets_its_own_tokens(tiny_llama, span, text):
    tokenizer = load.load_tokenizer(tiny_llama)
    row = objectives.chosen_row(tokenizer, bullets(1)[0], span)
    targets = [token for token, wanted in zip(row.ids, row.targets, strict=True) if wanted]
    assert tokenizer.decode(targets, skip_special_tokens=True) == text


def test_a_text_that_was_cut_off_has_no_end(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    ended, cut = bullets(1)[0], bullets(1)[0].model_copy(update={"cut": True})
    assert objectives.rejected_row(tokenizer, ended, "whole").ids[-1] == tokenizer.eos_token_id
    assert objectives.rejected_row(tokenizer, cut, "whole").ids == objectives.rejected_row(tokenizer, ended, "whole").ids[:-1]
    assert objectives.chosen_row(tokenizer, cut, "whole") == objectives.chosen_row(tokenizer, ended, "whole")


def test_the_prefix_is_the_text_of_whom_it_names(tiny_llama):
    tokenizer = load.load_tokenizer(tiny_llama)
    bullet = bullets(1)[0].model_copy(update={"solution": "Step 1: 20 + 1 = 21\nStep 2: 10 + 20 = 30\n\\boxed{30}", "place": (20, 41)})
    own, others = (tokenizer.decode(objectives.chosen_row(tokenizer, bullet, "step", p).ids) for p in ("quantized", "full"))
    assert "10 + 1 = 11" in own
    assert "20 + 1 = 21" in others


@pytest.mark.parametrize("span", ["step", "prefix", "whole"])
def test_a_shared_prefix_is_computed_once_to_the_same_likelihoods(tiny, span):
    model, tokenizer = load.load_model(tiny), load.load_tokenizer(tiny)
    several = bullets(3)
    several[2] = several[2].model_copy(update={"rejected": several[2].rejected * 9})  # of another length: it goes through by itself, first
    chosen = [objectives.chosen_row(tokenizer, b, span) for b in several]
    rejected = [objectives.rejected_row(tokenizer, b, span) for b in several]
    packed = [objectives.pack(*sides) for sides in zip(chosen, rejected, strict=True)]
    assert all(len(p.ids) < len(c.ids) + len(r.ids) for p, c, r in zip(packed, chosen, rejected, strict=True))
    with torch.no_grad():
        sums = objectives.pairs_of(model, packed, 0)
        for rows, found in zip((chosen, rejected), sums, strict=True):
            for row, value in zip(rows, found, strict=True):
                logits_TV = logits(model, row.ids).log_softmax(-1)
                alone = sum(logits_TV[t - 1, row.ids[t]] for t, wanted in enumerate(row.targets) if wanted)
                assert value.item() == pytest.approx(alone.item(), abs=1e-3)


def test_distillation_is_zero_from_itself_and_its_weights_follow_the_teacher():
    torch.manual_seed(0)
    one, other = torch.randn(5, 7), torch.randn(5, 7)
    plain = objectives.distill(other, one)
    assert objectives.distill(one, one).abs().max().item() == pytest.approx(0, abs=1e-6)
    sure, torn = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[9.0, 9.0, 0.0]])
    assert objectives.weights(sure, "low-entropy") > objectives.weights(torn, "low-entropy")
    assert objectives.weights(sure, "small-margin") < objectives.weights(torn, "small-margin")
    assert objectives.weights(sure, "uniform") == objectives.weights(torn, "uniform") == 1
    p, q = one.softmax(-1), other.softmax(-1)
    assert torch.allclose(plain, (p * (p / q).log()).sum(-1), rtol=1e-4)
    assert objectives.features(one, one).sum() == 0
    assert objectives.features(one + 1, one).mean().item() == pytest.approx((1 / one.pow(2).mean()).item(), rel=1e-5)


@pytest.mark.parametrize("question", [0.0, 0.5])
@pytest.mark.parametrize("weight", ["uniform", "low-entropy", "small-margin"])
def test_the_teacher_is_read_once_and_stays_the_teacher(tiny_llama, low_bit, question, weight):
    """Targets and questions are each a mean with weights of its own."""
    tokenizer, recipe = load.load_tokenizer(tiny_llama), Restore(question=question, features=0, weight=weight)
    student = scales.attach(str(low_bit), recipe)
    loss_of = Loss(recipe, student, tokenizer, bullets(3))
    loss_of.read(load.load_model(tiny_llama))
    row = loss_of.rows[1]
    with torch.no_grad():
        teacher_TV, student_TV = (logits(m, row.ids) for m in (load.load_model(tiny_llama), student))
        kl_T = objectives.distill(student_TV, teacher_TV)
        asked, targets = range(row.question - 1), [t - 1 for t, wanted in enumerate(row.targets) if wanted]
        weight_T = objectives.weights(teacher_TV, weight)
        means = [(kl_T[part] * weight_T[part]).sum() / weight_T[part].sum() for part in (targets, list(asked))]
        expected = means[0] + question * means[1]
        assert loss_of([1]).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("objective", ["sft", "dpo", "distill"])
def test_logits_in_pieces_are_the_same_loss_and_gradient(tiny_llama, low_bit, monkeypatch, objective):
    values = {"objective": objective, **({"weight": "small-margin"} if objective == "distill" else {})}
    recipe, tokenizer = Restore.model_validate(values), load.load_tokenizer(tiny_llama)
    student = scales.attach(str(low_bit), recipe)
    loss_of = Loss(recipe, student, tokenizer, bullets())
    loss_of.read(load.load_model(tiny_llama))
    parameters, held, found = [p for p in student.parameters() if p.requires_grad], [], []
    head = student.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: held.append(output.numel()))
    for most in (forward.LOGITS, 10 * head.out_features):
        monkeypatch.setattr(forward, "LOGITS", most)
        held.clear()
        loss = loss_of(range(8))
        found.append((loss.detach(), *torch.autograd.grad(loss, parameters)))
        assert max(held) <= most
    assert len(held) > 2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_weight_is_made_once_a_step_and_unlike_texts_change_no_gradient(tiny_llama, low_bit, monkeypatch):
    recipe, tokenizer = Restore(), load.load_tokenizer(tiny_llama)
    model = scales.attach(str(low_bit), recipe)
    tuned = [p for p in model.parameters() if p.requires_grad]
    unlike = [b.model_copy(update={"prefix": b.prefix * (1 + 2 * i)}) for i, b in enumerate(bullets(3))]
    loss = Loss(recipe, model, tokenizer, unlike)
    loss.read(load.load_model(tiny_llama))
    calls, weight = [], scales.ScaleLinear.weight
    monkeypatch.setattr(scales.ScaleLinear, "weight", lambda layer, *made: calls.append(layer) or weight(layer, *made))
    apart = torch.autograd.grad(loss(range(3)), tuned)
    assert len(calls) == len(set(calls)) == len(scales.scales(model))
    monkeypatch.setitem(forward.SIMILAR, model.device.type, 0)  # all in one pass
    for one, other in zip(apart, torch.autograd.grad(loss(range(3)), tuned), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rounded", [True, False])
def test_scales_made_together_are_those_of_each_layer_to_the_bit(low_bit, rounded):
    model = scales.attach(str(low_bit), Restore())
    layers = [*scales.scales(model).values()]
    torch.manual_seed(0)
    for i, layer in enumerate(layers):
        layer.change.data.normal_(0, 0.6)  # some reach the floor
        layer.stored.storage = (torch.bfloat16, torch.float16)[i % 2]
    with nullcontext() if rounded else scales.unrounded(model):
        apart, together = [layer.scale() for layer in layers], scales.scales_of(layers)
    weights = [torch.randn_like(scale) for scale in apart]
    changes = [layer.change for layer in layers]
    totals = [torch.stack([(w * s).sum() for w, s in zip(weights, of, strict=True)]).sum() for of in (apart, together)]
    one, other = (torch.autograd.grad(total, changes) for total in totals)
    assert all(map(torch.equal, apart, together))
    assert all(map(torch.equal, one, other))


def test_dpo_is_its_closed_form():
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-3.0])
    start = torch.tensor([-2.0])
    expected = -torch.nn.functional.logsigmoid(torch.tensor(0.5 * ((-1 + 2) - (-3 + 2))))
    assert objectives.dpo(chosen, rejected, start, start, 0.5) == pytest.approx(expected.item())
