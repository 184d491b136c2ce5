"""Decoding from slots: the model's own words, whatever else is decoded, in which order, and wherever work was cut."""

import itertools
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from stepmend.benchmarks import story
from stepmend.engines import decode, slots
from stepmend.engines.local import LocalEngine
from stepmend.models import chat, load
from stepmend.models.reasoner import CHECKPOINTS
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from tests.texts import calibration_texts, logits


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    folder = str(CHECKPOINTS / "qwen2")
    return LocalEngine(load.load_model(folder), load.load_tokenizer(folder), 60, 4)


@pytest.fixture(scope="module")
def texts(engine) -> list[str]:
    problems = [p for level in story.LEVELS for p in itertools.islice(story.problems("test", level, seed=1), 3)]
    return [chat.render(engine.tokenizer, "plain-1", p.question) for p in problems]


def test_it_is_what_the_model_itself_would_say(engine, texts):
    """Token by token, from plain passes over the whole text."""
    for text, completion in zip(texts[::4], engine.complete(texts[::4]), strict=True):
        ids = [*chat.encode(engine.tokenizer, text), *completion.tokens]
        with torch.inference_mode():
            found = logits(engine.model, ids)[len(ids) - len(completion.tokens) - 1 : -1].argmax(-1)
        assert tuple(found.tolist()) == completion.tokens


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_completions_do_not_depend_on_order_or_on_where_work_was_cut(engine, texts, temperature, dtype):
    if dtype != torch.float32:
        engine = replace(engine, model=load.load_model(str(CHECKPOINTS / "qwen2")).to(dtype))
    texts = [*texts, *texts[:2]]  # some are asked twice, or sampled
    options = {"temperature": temperature, "seed": 4}
    whole = dict(engine.generate(texts, **options))
    assert sorted(whole) == list(range(len(texts)))
    for cut in (1, len(texts) - 3):
        first = dict(itertools.islice(engine.generate(texts, **options), cut))
        assert first | dict(engine.generate(texts, **options, done=first.keys())) == whole
    order = list(range(len(texts) - 2))
    random.Random(cut).shuffle(order)
    shuffled = engine.complete([texts[i] for i in order], **options)
    assert shuffled == [whole[i] for i in order]
    assert [engine.complete([texts[i]], **options)[0] for i in order[:2]] == shuffled[:2]


def test_a_checkpoints_own_generation_settings_change_nothing(engine, texts, tmp_path):
    folder = shutil.copytree(CHECKPOINTS / "qwen2", tmp_path / "copy")
    asked = {"do_sample": True, "num_beams": 2, "num_return_sequences": 2, "min_new_tokens": 50, "suppress_tokens": [5, 6, 7]}
    asked |= {"repetition_penalty": 1.5, "temperature": 3.0, "eos_token_id": engine.model.generation_config.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    other = replace(engine, model=load.load_model(str(folder)))
    for complete in (LocalEngine.complete, LocalEngine.generate_batch):
        assert complete(other, texts[:3]) == complete(engine, texts[:3])


def test_every_token_is_counted_as_it_is_written(engine, texts):
    counts: list[int] = []
    made = replace(engine, written=counts.append).complete(texts[:6])
    assert sum(counts) == sum(len(one.tokens) for one in made)
    assert max(counts) == engine.slots


def test_samples_of_one_text_differ_and_follow_the_model(engine, texts):
    count = 400
    short = replace(engine, max_new_tokens=1, slots=32)
    ids = chat.encode(engine.tokenizer, texts[0])
    with torch.inference_mode():
        wanted_V = (logits(engine.model, ids)[-1] / 3.0).softmax(-1)
    drawn = [c.tokens[0] for c in short.complete([texts[0]] * count, temperature=3.0, seed=1)]
    assert len(set(drawn)) > 3
    likeliest = int(wanted_V.argmax())
    rate, spread = float(wanted_V[likeliest]), float((wanted_V[likeliest] * (1 - wanted_V[likeliest]) / count).sqrt())
    assert drawn.count(likeliest) / count == pytest.approx(rate, abs=4 * spread)
    assert drawn != [c.tokens[0] for c in short.complete([texts[0]] * count, temperature=3.0, seed=2)]


def test_real_families_decode_from_slots(tiny):
    model = load.load_model(tiny)
    assert slots.supported(model)
    engine = LocalEngine(model, load.load_tokenizer(tiny), 12, 4)
    texts = calibration_texts(engine.tokenizer, 3)
    assert [c.tokens for c in engine.complete(texts)] == [engine.generate_batch([text])[0].tokens for text in texts]


def test_masked_attention_is_that_of_each_row_by_itself():
    """What a GPU computes in one piece, computed here."""
    torch.manual_seed(0)
    cache = slots.Slots(4, 100)
    cache.ends = [70, 0, 5, 33]
    places, longest = cache.advance()
    cache.step(torch.tensor(places), longest)
    query_BHTD = torch.randn(4, 6, 1, 16)
    key_BKLD, value_BKLD = torch.randn(4, 2, 128, 16), torch.randn(4, 2, 128, 16)
    alone = cache.by_row(query_BHTD.view(4, 2, 3, 16), key_BKLD, value_BKLD, 0.25)
    masked = cache.by_mask(query_BHTD.view(4, 2, 3, 16), key_BKLD, value_BKLD, 0.25)
    used = [0, 2, 3]
    torch.testing.assert_close(alone[used], masked[used])


def test_a_model_is_supported_where_each_pass_writes_over_the_outputs_of_the_last(tiny_llama, monkeypatch):
    """As a replayed recording does on a GPU."""
    outputs: dict[torch.Size, torch.Tensor] = {}

    def program(held, function, model):
        def run(*given, **more):
            (made,) = function(model, held, *given, **more)
            return (outputs.setdefault(made.shape, torch.empty_like(made)).copy_(made),)

        return run

    monkeypatch.setattr(slots.Slots, "program", program)
    model, tokenizer = load.load_model(tiny_llama), load.load_tokenizer(tiny_llama)
    assert slots.supported(model)
    texts = calibration_texts(tokenizer, 3)
    texts = [texts[0], texts[0], *texts[1:]]  # the second one takes what was read for the first
    written = LocalEngine(model, tokenizer, 12, 1).complete(texts)
    monkeypatch.undo()
    assert written == LocalEngine(load.load_model(tiny_llama), tokenizer, 12, 1).complete(texts)


def small(kind: str):
    from transformers import Gemma2Config, GptOssConfig, MistralConfig, Qwen2Config, Qwen2MoeConfig

    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    more = {
        "sliding": (MistralConfig, {"sliding_window": 16}),
        "some layers sliding": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        "capped": (Gemma2Config, {}),
        "sinks": (GptOssConfig, {"num_local_experts": 2, "layer_types": ["full_attention"] * 2}),
        "experts": (Qwen2MoeConfig, {"num_experts": 4}),
        "dynamic positions": (Qwen2Config, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    }
    kind_of, options = more[kind]
    return kind_of(**size, **options)


@pytest.mark.parametrize("kind", ["sliding", "some layers sliding", "capped", "sinks", "experts", "dynamic positions"])
def test_other_attention_is_left_to_the_model(kind):
    from transformers import AutoModelForCausalLM

    assert not slots.supported(AutoModelForCausalLM.from_config(small(kind)).eval())


def test_a_model_whose_words_would_change_is_left_to_itself(tiny_llama):
    model = load.load_model(tiny_llama)
    layer = model.model.layers[1].self_attn
    layer.register_forward_pre_hook(lambda module, args, options: (args, {**options, "past_key_values": None}), with_kwargs=True)
    assert not slots.supported(model)


@pytest.mark.parametrize(("name", "from_slots"), [("rtn-w4a16-g64", True), ("rtn-w8a8", True), ("gptq-w4a16-g64-kv8", False)])
def test_quantized_models_decode(tiny_llama, tmp_path, name, from_slots):
    tokenizer = load.load_tokenizer(tiny_llama)
    quantizer.quantize(tiny_llama, schemes.parse(name), calibration_texts(tokenizer, 8), tmp_path / "low")
    engine = LocalEngine(load.load_model(str(tmp_path / "low")), tokenizer, 8, 3)
    assert engine.batched != from_slots
    texts = calibration_texts(tokenizer, 4)
    assert all(len(c.tokens) == 8 or c.finish == "stop" for c in engine.complete(texts))
    cut = dict(itertools.islice(engine.generate(texts), 1))
    assert cut | dict(engine.generate(texts, done=cut.keys())) == dict(enumerate(engine.complete(texts)))


def test_the_nucleus_is_the_fewest_tokens_that_come_to_the_share():
    share = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01]])
    for top_p, kept in ((0.3, [[1], [0]]), (0.4, [[1], [0]]), (0.5, [[1, 2], [0]]), (0.98, [[0, 1, 2, 3], [0, 1]])):
        found = decode.nucleus(share, top_p)
        assert [row.nonzero()[:, 0].tolist() for row in found] == kept
        assert torch.equal(found[found > 0], share[found > 0])


def test_of_the_likeliest_tokens_alone_a_small_nucleus_is_greedy(engine, texts):
    drawn = dict(engine.generate(texts[:4], temperature=0.9, top_p=1e-6))
    assert [drawn[i] for i in range(4)] == engine.complete(texts[:4])


def test_a_texts_nth_completion_is_the_same_however_many_there_are(engine, texts, monkeypatch):
    two = texts[:2]
    three, one = (dict(engine.generate(two * n, temperature=2.0, top_p=0.999, seed=3)) for n in (3, 1))
    assert [three[0], three[1]] == [one[0], one[1]]
    assert len({three[i].text for i in (0, 2, 4)}) > 1
    monkeypatch.setattr(slots, "supported", lambda model: False)  # as for a model that decodes in fixed batches
    assert engine.batched
    three, one = (dict(engine.generate(two * n, temperature=2.0, top_p=0.999, seed=3)) for n in (3, 1))
    assert [three[0], three[1]] == [one[0], one[1]]
    assert len({three[i].text for i in (0, 2, 4)}) > 1


def test_out_of_memory_halves_the_slots_and_goes_on(engine, texts, monkeypatch):
    counts, step = [], slots.step

    def short_of_memory(model, held, tokens):
        if held.count > 1 and max(held.ends) > 60:
            raise torch.OutOfMemoryError("no more")
        return step(model, held, tokens)

    monkeypatch.setattr(slots, "step", short_of_memory)
    found = dict(replace(engine, halved=counts.append).generate(texts))
    monkeypatch.undo()
    assert counts == [2, 1]
    assert [found[i].text for i in range(len(texts))] == [c.text for c in engine.complete(texts)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_recorded_passes_write_what_plain_ones_write(engine, texts, temperature, monkeypatch):
    recorded = engine.complete(texts, temperature=temperature), engine.complete(texts[::2], temperature=temperature)
    assert any(program.recorded for held in engine.kept for program in held.programs.values())
    monkeypatch.setattr(slots.Slots, "program", lambda held, function, model: lambda *given, **more: function(model, held, *given, **more))
    assert recorded == (engine.complete(texts, temperature=temperature), engine.complete(texts[::2], temperature=temperature))


def test_layout_of_weights_changes_no_value(tiny_llama):
    model, plain = load.load_model(tiny_llama), load.load_model(tiny_llama)
    decode.by_columns(model)
    assert not model.model.layers[0].mlp.up_proj.weight.is_contiguous()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.shape == other.shape, name
        assert torch.equal(one, other), name
    torch.testing.assert_close(logits(model, range(30)), logits(plain, range(30)))
