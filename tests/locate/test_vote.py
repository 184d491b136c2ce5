"""The vote: Bayes' rule over the first faulty step, by what each locator was measured to be worth."""

import numpy as np
import pytest

from stepmend import InputError, Vote
from stepmend.locate import reliability
from stepmend.locate.reliability import DEFAULT, Reliabilities, Reliability, Table
from stepmend.locate.vote import posterior, vote

STEPS, FREE = DEFAULT.table("story", "steps"), DEFAULT.table("gsm8k", "free")
SIX = ["calculation"] * 6


def said(**steps: int | None) -> list[Vote]:
    return [Vote(locator=name, step=step, evidence="") for name, step in steps.items()]


@pytest.mark.parametrize(
    ("named", "winner"),
    [
        ((1, 1, 2), 1),
        ((0, 2, 2), 0),
        ((1, None, 3), 1),
        ((None, 2, 2), 2),
        ((None, None, 3), 3),
        ((None, 2, 3), 2),
        ((4, 1, 1), 1),
        ((None, None, None), None),
        ((None, 4, 1), 4),
    ],
)
def test_the_vote_in_the_step_format(named, winner):
    """What was measured more reliable counts more, and nothing lies behind a false equation."""
    votes = said(**dict(zip(("equations", "rescue", "margins"), named, strict=True)))
    assert vote(votes, SIX, STEPS)[0] == winner


def test_the_posterior_by_hand():
    """Two steps, one locator: Bayes' rule with the locator's three rates."""
    table = Table(n=1, locators={"a": Reliability(exact=0.6, early=0.1, late=0.3)}, none=0.0)
    found = posterior(said(a=1), ["calculation"] * 2, table)
    # a names step 1: exact where 1 is faulty (0.6), late where 0 is (0.3, one later step there is).
    assert found == pytest.approx([0.3 / 0.9, 0.6 / 0.9, 0.0], abs=1e-6)


def test_one_misread_line_does_not_outvote_the_others_in_free_text():
    """Equations at 2, rescue and solution at 6 of 10: in free text an alarm is often late, and now and then misread."""
    votes = said(equations=2, rescue=6, solution=6)
    step, confidence = vote(votes, ["calculation"] * 10, FREE)
    assert step == 6 or confidence < 0.6


def test_a_false_equation_says_at_or_before_its_step():
    found = posterior(said(equations=3), SIX, FREE)
    assert found[4:].sum() < 0.1
    found = posterior(said(equations=3), SIX, FREE.model_copy(update={"power": 1.0}))  # by its own rates
    assert found[:4].sum() > 0.95
    assert found[3] == found[:-1].max()


def test_margins_say_little_in_free_text():
    _, free = vote(said(margins=0), SIX, FREE)
    _, steps = vote(said(margins=0), SIX, STEPS)
    assert free < 0.5 < steps


def test_a_preamble_is_rarely_faulty():
    kinds = ["introduction", *["calculation"] * 5]
    drop = np.ones(7) * 0.01
    drop[[0, 1]] = 1.0
    votes = [Vote(locator="rescue", step=0, evidence="", likelihood=tuple(drop))]
    assert vote(votes, kinds, FREE)[0] == 1


def test_rescues_own_uncertainty_enters():
    sure, unsure = (tuple([0.01] * 2 + [x] + [0.01 / x] * 4) for x in (1.0, 0.02))
    for likelihood, wanted in ((sure, 2), (unsure, None)):
        votes = [Vote(locator="rescue", step=2, evidence="", likelihood=likelihood)]
        assert vote(votes, SIX, FREE)[0] == wanted


def test_where_nothing_is_faulty_no_step_is_named():
    votes = [Vote(locator="rescue", step=None, evidence="", likelihood=(*[1e-4] * 6, 1.0))]
    step, _ = vote(votes, SIX, FREE)
    assert step is None


def test_the_vote_abstains_below_the_stated_probability():
    votes = said(reference=2)
    step, confidence = vote(votes, SIX, FREE)
    assert step == 2
    assert vote(votes, SIX, FREE, threshold=confidence + 0.01) == (None, confidence)
    assert vote(said(equations=5, judges=4), SIX, STEPS)[0] is None


def test_two_right_solutions_have_one_voice():
    one, both = posterior(said(reference=2), SIX, FREE), posterior(said(reference=2, solution=2), SIX, FREE)
    assert both[2] == pytest.approx(one[2], abs=0.03)
    apart = posterior(said(reference=2, solution=4), SIX, FREE)
    assert max(apart[2], apart[4]) < one[2]


def test_a_judge_that_was_measured_speaks_for_itself():
    votes = said(good=4, other=1, judges=1)
    assert posterior(votes, SIX, FREE)[:-1].argmax() == 1  # nobody has measured them: their quorum counts
    table = FREE.model_copy(update={"locators": {**FREE.locators, "good": Reliability(exact=0.95, early=0.02, late=0.03)}})
    assert vote(votes, SIX, table)[0] == 4
    assert posterior(votes, SIX, table) == pytest.approx(posterior(said(good=4), SIX, table)), "the quorum says it a second time"


def test_more_power_is_surer():
    low, high = (vote(said(reference=2), SIX, FREE.model_copy(update={"power": power}))[1] for power in (0.3, 1.0))
    assert low < high


def test_tables_by_benchmark_then_by_text_then_the_default(tmp_path):
    own = Table(n=9, locators={})
    rates = Reliabilities(tables={"gsm8k/free": own, "*/free": Table(n=5, locators={})})
    assert rates.table("gsm8k", "free").n == 9
    assert rates.table("math", "free").n == 5
    assert rates.table("gsm8k", "steps") == STEPS
    file = tmp_path / "rates.json"
    file.write_text(rates.model_dump_json())
    assert reliability.read(file) == rates


def test_the_defaults_are_probabilities():
    assert all(0 < likelier < 1 for likelier in reliability.FREE.values()), "calculations are where faults are"
    for table in DEFAULT.tables.values():
        assert 0 < table.none < 0.05
        assert all(rates.exact + rates.early + rates.late == pytest.approx(1) for rates in table.locators.values())


@pytest.mark.parametrize("values", [{"power": 1.01}, {"power": 0.0}, {"none": 1.0}, {"none": -0.01}, {"n": -1}])
def test_rates_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Table.model_validate({"n": 1, "locators": {}, **values})


@pytest.mark.parametrize("content", ["", "[]", '{"version": "reliability-0", "tables": {}}', '{"version": "reliability-1", "tables": 3}'])
def test_a_file_that_holds_no_rates_is_one_line(tmp_path, content):
    file = tmp_path / "rates.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"locate\.reliabilities") as caught:
        reliability.read(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        reliability.read(tmp_path / "none.json")
