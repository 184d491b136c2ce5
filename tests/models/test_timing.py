"""The time that a run is expected to take: what is counted, and that the probe's speeds are those of the machine."""

import time
from dataclasses import replace

import pytest
import torch
import transformers

from stepmend.cli.checking import duration
from stepmend.engines import budget
from stepmend.models import check, load, timing
from tests.models.test_families import SIZE

SPEED = timing.Speed(few=1e-9, many=1e-10, small=1e-6, attend=1e-5, move=1e-9, made=0.5)
WORK = timing.Work(slots=8)


def size_of(kind: str, **values) -> timing.Size:
    model = load.skeleton(getattr(transformers, f"{kind}Config")(vocab_size=300, **SIZE, **values))
    return timing.size_of(model, check.layers_of(model))


def test_numbers_are_those_that_a_token_meets():
    attention, block, head = 2 * (64 * 64 + 64 * 32), 3 * 64 * 128, 64 * 300
    assert size_of("Llama").numbers == 2 * (attention + block) + head
    assert size_of("Llama", tie_word_embeddings=True).numbers == 2 * (attention + block) + head
    experts = size_of("Mixtral", num_local_experts=8, num_experts_per_tok=2)
    assert experts.numbers - 2 * (attention + 2 * block) - head == pytest.approx(0, abs=2 * 8 * 64)  # but for the routers
    assert size_of("Llama").squares == 2 * (6 * 64**2 + 128**2)


def test_stages_grow_with_what_they_do():
    size = size_of("Llama")
    plain = timing.stages(size, SPEED, WORK, "cpu", {"gptq"})
    assert all(value > 0 for value in plain.values())
    longer = timing.stages(size, SPEED, replace(WORK, solution=800), "cpu", {"gptq"})
    assert all(longer[stage] > plain[stage] for stage in plain)
    loaded = timing.loading(size, SPEED)
    assert loaded == pytest.approx(0.5 + 4e-9 * size.held)
    twice = timing.stages(size, SPEED, replace(WORK, problems=600), "cpu", {"gptq"})["solve"]
    assert twice - loaded == pytest.approx(2 * (plain["solve"] - loaded))
    assert timing.stages(size, SPEED, WORK, "cpu", {"awq"})["quantize"] > plain["quantize"]
    assert timing.writing(size, SPEED, 8, "cuda") < timing.writing(size, SPEED, 8, "cpu"), "a GPU attends for all slots at once"


def test_what_does_not_grow_with_the_texts_is_counted_too():
    size = size_of("Llama")
    nothing = replace(WORK, calibration=0, problems=0, taught=0, solved=0, steps=0, held_out=0)
    found = timing.stages(size, SPEED, nothing, "cpu", {"rtn"})
    loaded, body = timing.loading(size, SPEED), 2 * (2 * (64 * 64 + 64 * 32) + 3 * 64 * 128)
    assert (size.quantized, size.columns) == (body, 2 * (6 * 64 + 128))
    assert (found["solve"], found["locate"]) == (loaded, 0)
    assert found["quantize"] == pytest.approx(2 * loaded + 30e-9 * body), "loaded, rounded and packed, loaded again"
    assert timing.stages(size, SPEED, nothing, "cpu", {"gptq"})["quantize"] > found["quantize"] + 30e-6 * size.columns
    assert found["restore"] > 3 * loaded + 24.5e-10 * size.rounding, "full precision, the low-bit model, and the reloaded one"
    assert timing.stages(size, replace(SPEED, made=1.5), nothing, "cpu", {"rtn"})["restore"] == pytest.approx(found["restore"] + 3)


def test_validation_is_counted_by_states_and_passes():
    assert (WORK.states, replace(WORK, steps=4).states) == (30, 24)
    size, one = size_of("Llama"), replace(WORK, taught=0, steps=0, batch=0, held_out=2)
    assert (size.vocabulary, size.head) == (300, 300 * 64)
    read = timing.reading(size, SPEED) + size.head * SPEED.many + 8 * 300 * SPEED.move
    more = timing.stages(size, SPEED, replace(one, solution=one.solution + 100), "cpu", {"rtn"})["restore"]
    assert more - timing.stages(size, SPEED, one, "cpu", {"rtn"})["restore"] == pytest.approx(20 * 100 * read)
    assert WORK.passes == 30 * 3 * 3, "48 solutions in three parts, each of up to three lengths"
    assert replace(WORK, held_out=4).passes == 30 * 2


def test_the_probe_measures_what_a_layer_takes():
    sizes = {**SIZE, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
    model = load.skeleton(transformers.LlamaConfig(**sizes, vocab_size=300))
    start = time.perf_counter()
    speed = timing.probe(model, 8, "cpu", torch.float32, time.process_time)
    assert time.perf_counter() - start < 60  # about two seconds on an idle machine
    layer, states = torch.nn.Linear(512, 1024, bias=False), torch.ones((timing.MANY, 512))
    with torch.inference_mode():
        begin = time.process_time()
        for _ in range(10):
            layer(states)
        measured = (time.process_time() - begin) / 10
    assert speed.many * timing.MANY * 512 * 1024 == pytest.approx(measured, rel=2)
    assert speed.few > speed.many, "a number that is read for few rows takes each of them longer"


def test_a_model_without_attention_has_its_estimates_too(monkeypatch):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "vocab_size": 300}
    config = transformers.Mamba2Config(**sizes)
    assert timing.probe(load.skeleton(config), 8, "cpu", torch.float32).many > 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))
    assert budget.slots_for(config, 400, "cuda") >= 8


DURATIONS = [(0.0, "0 s"), (5.26, "5.3 s"), (119, "120 s"), (150, "2.5 min"), (7150, "120 min"), (9000, "2.5 h")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_a_duration_has_two_digits(seconds, text):
    assert duration(seconds) == text
