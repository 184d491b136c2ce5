"""A model that cannot decode from slots writes what it reads, whatever its cache can do."""

import pytest
import torch

from benchmarks import family_models
from stepmend.engines import ways
from stepmend.engines.local import LocalEngine
from stepmend.models import chat, reasoner

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ("Tom has 12 eggs.", "Ann has 7 red apples and 5 green ones. How many apples?", "Two")
KINDS = {
    "a window": "gemma3_text",
    "a state": "mamba2",
    "states and attention": "falcon_h1",
    "a cache without a fixed size": "deepseek_v4",
    "no masks for a cache of fixed size": "llama4_text",
    "images, which are not given": "git",
    "positions by distance": "mpt",
    "states of its own": "recurrent_gemma",
}


@pytest.mark.parametrize("family", KINDS.values(), ids=KINDS)
def test_what_is_written_is_what_is_read(family):
    tokenizer = reasoner.make_tokenizer()
    model = family_models.build(family, len(tokenizer)).eval()
    engine = LocalEngine(model, tokenizer, 6)
    for text, said in zip(TEXTS, engine.complete(TEXTS), strict=True):
        prompt, tokens = chat.encode(tokenizer, text), list(said.tokens)
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
        best_N, got_N = logits_TV[len(prompt) - 1 : -1].max(-1).values, logits_TV[range(len(prompt) - 1, len(logits_TV) - 1), tokens]
        assert (best_N - got_N).max() < 1e-3 * logits_TV.std(), ways.way_of(model)
