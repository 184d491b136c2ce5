"""How many layers hold codes, were restored and left alone: from facts, in the model card and on the page."""

import json

from stepmend.report import card, layers, page
from tests.report.test_restoring import FULL, LOW, RESTORED, SCHEME, found

MADE = {"layers": {"quantized": 16, "tuned": 14, "left alone": {"an embedding": 1, "the head": 1, "experts in one tensor": 2}, "codes": 38}}
CHANGED = {"solved": 13, "rescaled": 14, "norms": 5, "untuned": 24}
ARMS = {"full": FULL, SCHEME: LOW, RESTORED: FULL}
TEXT = (
    "38 linear layers hold codes; restoring changed the codes of 13, the scales of 14, and 5 norms; codes and scales of 24 stay as they "
    "were quantized (experts in one tensor); left in full precision: 1 (an embedding), 1 (the head)."
)


def test_card_and_page_say_how_many_layers_were_restored_and_why_others_were_not():
    run = found(ARMS, {f"quantize-{SCHEME}": MADE, f"restore-{RESTORED}": {"bullets": 7, "layers": CHANGED}})
    text = card.text(run, SCHEME, RESTORED)
    assert f"Layers: {TEXT}" in text
    facts = json.loads(text.split("```json")[1].split("```")[0])["layers"]
    assert (facts["codes"], facts["solved"], facts["untuned"], facts["dense"]) == (38, 13, 24, {"an embedding": 1, "the head": 1})
    assert TEXT in page.html(run)


def test_what_was_not_restored_is_counted_as_quantized_alone():
    of = layers.layers(found({"full": FULL, SCHEME: LOW}, {f"quantize-{SCHEME}": MADE}), SCHEME)
    assert of and of["solved"] is None
    assert of["text"] == "38 linear layers hold codes; left in full precision: 1 (an embedding), 1 (the head)."


def test_an_adapter_changes_no_codes():
    run = found(ARMS, {f"quantize-{SCHEME}": MADE, f"restore-{RESTORED}": {"layers": {"adapted": 14, "untuned": 0}}}, tune="lora")
    of = layers.layers(run, SCHEME)
    assert of and of["text"].startswith("38 linear layers hold codes; 14 have an adapter; left in full precision")


def test_runs_that_noted_no_layers_say_nothing_of_them():
    assert layers.layers(found(ARMS, {f"restore-{RESTORED}": {"bullets": 7}}), SCHEME) is None
    assert "<h4>layers</h4>" not in page.html(found(ARMS))
