"""Rescue by samples: the change point of the counts, where samples are spent, and what it costs."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import betabinom

from stepmend import Trace
from stepmend.engines.base import Completion
from stepmend.locate import locators, rescue
from stepmend.locate.rescue import CONCENTRATION, LEVELS_P, RESIDUE, SampledRescue


class World:
    """Traces whose cuts are worth ``level`` up to the faulty step and ``residue`` after it; draws depend on text and number alone."""

    def __init__(self, faults: list[int | None], steps: int, level: float, residue: float = 0.02, finish: str = "length") -> None:
        text = "".join(f"s{k} " for k in range(steps))
        self.faults, self.level, self.residue, self.asked = faults, level, residue, []
        traces = [Trace(problem=f"p{i}", arm="a", made_by="m", text=text, tokens=(), finish=finish) for i in range(len(faults))]
        spans = tuple((3 * k, 3 * k + 3) for k in range(steps))
        self.cases = [locators.Case(f"{i}|", trace, spans, None) for i, trace in enumerate(traces)]
        self.priors = [np.append(np.full(steps, 0.98 / steps), 0.02) for _ in faults]

    def complete(self, asked):
        self.asked += asked
        return [[Completion(f"{one.text} {n}", (1,) * 10, "stop") for n in range(one.start, one.end)] for one in asked]

    def arrive(self, asked):
        found = []
        for i, text, _ in asked:
            cut = len(text.partition(f"{i}|")[0]) // 3
            fault = self.faults[i]
            worth = self.level if fault is None or cut <= fault else self.residue
            found.append(np.random.default_rng(abs(hash_of(text))).random() < worth)
        return found

    def __call__(self, samples=8, order=None):
        order = list(range(len(self.cases))) if order is None else order
        swapped = World.__new__(World)
        swapped.__dict__ = {**self.__dict__, "faults": [self.faults[i] for i in order]}
        run = SampledRescue(self.complete, lambda asked: self.arrive([(order[i], t, f) for i, t, f in asked]), samples)
        cases = [self.cases[i] for i in order]
        return run(cases, [self.priors[i] for i in order], [self.priors[i] for i in order])


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-12:], "little") % (1 << 32) + 7919 * sum(text.encode())


def test_the_likelihood_by_hand():
    """Three cuts, two steps: the product of beta-binomial probabilities of either side of the change point."""
    arrived, sampled = np.array([5, 1, 0]), np.array([8, 4, 0])
    found = rescue.log_likelihood(arrived, sampled)
    assert found.shape == (3, len(LEVELS_P))
    for fault, (p, level) in itertools.product(range(3), enumerate(LEVELS_P)):
        wanted = 0.0
        for cut in range(3):
            mean = level if cut <= fault else RESIDUE * level
            wanted += betabinom(sampled[cut], CONCENTRATION * mean, CONCENTRATION * (1 - mean)).logpmf(arrived[cut])
        assert found[fault, p] == pytest.approx(wanted, abs=1e-9)


def test_information_is_the_expected_fall_in_entropy():
    arrived, sampled = np.array([3, 0, 0]), np.array([4, 4, 0])
    joint = np.exp(rescue.log_likelihood(arrived, sampled))
    joint /= joint.sum()
    found = rescue.information(joint, arrived, sampled, 1)

    def entropy(of):
        return -sum(p * math.log(p) for p in of if p > 0)

    for cut in range(3):
        expected = 0.0
        for outcome in (0, 1):
            more = np.array([outcome if c == cut else 0 for c in range(3)]), np.array([int(c == cut) for c in range(3)])
            after = np.exp(rescue.log_likelihood(arrived + more[0], sampled + more[1]))
            # The likelihood of the new outcome alone, without the number of ways to order old and new ones.
            ways = math.comb(sampled[cut] + 1, arrived[cut] + outcome) / math.comb(sampled[cut], arrived[cut])
            weight = after / np.exp(rescue.log_likelihood(arrived, sampled)) / ways * joint
            expected += weight.sum() * entropy(weight.sum(1) / weight.sum())
        assert found[cut] == pytest.approx(entropy(joint.sum(1)) - expected, abs=1e-6)


@pytest.mark.parametrize(("level", "steps", "least"), [(0.9, 5, 0.9), (0.9, 16, 0.85), (0.5, 6, 0.7)])
def test_the_drop_is_found_however_hard_the_problem(level, steps, least):
    faults = [k % steps for k in range(60)]
    world = World(faults, steps, level)
    found = world()
    assert sum(r.vote.step == fault for r, fault in zip(found, faults, strict=True)) >= least * len(faults)
    most = 8 * (math.ceil(math.log2(steps + 1)) + 2) + 8
    assert all(r.completions <= most for r in found)
    assert all(r.tokens == 10 * r.completions for r in found)


def test_confidence_is_what_comes_out():
    faults = [k % 8 for k in range(160)]
    found = World(faults, 8, 0.6)()
    stated = np.array([r.vote.confidence for r in found])
    right = np.array([r.vote.step == fault for r, fault in zip(found, faults, strict=True)])
    assert abs(stated.mean() - right.mean()) < 0.12
    assert right[stated > 0.8].mean() > right[stated < 0.6].mean()


def test_a_long_thought_is_searched_in_few_batches():
    world = World([700], 2000, 0.9)
    (found,) = world()
    assert abs(found.vote.step - 700) <= 40
    assert found.completions <= 8 * (math.ceil(math.log2(2001)) + 2)


def test_easy_cases_cost_less_than_open_ones():
    sure = World([2] * 20, 8, 0.95, 0.0)()
    unsure = World([2] * 20, 8, 0.35, 0.1)()
    assert sum(r.completions for r in sure) < sum(r.completions for r in unsure)


def test_samples_are_the_same_in_any_order_and_company():
    world = World([k % 6 for k in range(12)], 6, 0.7)
    plain, alone = world(), world(order=[7])
    turned = world(order=list(range(11, -1, -1)))
    assert [r.vote for r in plain] == [r.vote for r in reversed(turned)]
    assert alone[0].vote == plain[7].vote


def test_no_sample_is_drawn_twice():
    world = World([3], 6, 0.5)
    world()
    drawn = [(one.text, n) for one in world.asked for n in range(one.start, one.end)]
    assert len(set(drawn)) == len(drawn)


def test_not_solved_even_from_the_start():
    (found,) = World([2], 6, 0.0, 0.0)()
    assert (found.outcome, found.vote.step, found.vote.likelihood, found.completion) == ("unrescuable", None, (), None)
    assert found.completions >= 8


def test_solved_even_from_the_end():
    (found,) = World([None], 5, 0.95)()
    assert (found.outcome, found.vote.step) == ("misread", None)
    assert np.argmax(found.vote.likelihood) == 5


def test_nothing_is_sampled_behind_an_answer():
    world = World([1], 4, 0.8, finish="stop")
    case = world.cases[0]
    text = case.trace.text[:-3] + "\\boxed{3}"
    world.cases[0] = locators.Case(case.prompt, case.trace.model_copy(update={"text": text}), (*case.spans[:-1], (9, len(text))), None)
    world()
    assert all(one.text != case.prompt + text for one in world.asked)


def test_a_trace_without_steps():
    empty = locators.Case("q", Trace(problem="p", arm="a", made_by="m", text="", tokens=(), finish="stop"), (), None)
    prior = np.array([1.0])
    (found,) = SampledRescue(lambda asked: [], lambda asked: [])([empty], [prior], [prior])
    assert (found.outcome, found.vote.step, found.completions) == ("abstained", None, 0)


def test_the_guide_decides_where_samples_go_and_nothing_else():
    world = World([5], 12, 0.9)
    guide = np.full(13, 0.005)
    guide[5] = 0.94
    run = SampledRescue(world.complete, world.arrive, 8)
    (guided,) = run(world.cases, world.priors, [guide])
    looked = {len(one.text.partition("|")[2]) // 3 for one in world.asked}
    assert looked <= {0, 5, 6}  # around the suspected step, and the start where nothing has arrived yet
    assert guided.completions < world()[0].completions
