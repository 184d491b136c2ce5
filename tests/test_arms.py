"""Names of arms: each kind's, as run folders hold them, and that a name and its arm tell the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmend import arms
from stepmend.arms import Arm, of_folder
from stepmend.curate import controls
from stepmend.quantize import schemes

LOW = "gptq-w3a16-g128"
KINDS = {
    "full": Arm(),
    "full+again": Arm(variant="again"),
    LOW: Arm(LOW),
    f"{LOW}+restored": Arm(LOW, round=1),
    f"{LOW}+restored-2": Arm(LOW, round=2),
    f"{LOW}+restored-12": Arm(LOW, round=12),
    f"{LOW}+located-steps-s0": Arm(LOW, variant="located", budget="steps", seed=0),
    f"{LOW}+random-step-steps-s0": Arm(LOW, variant="random-step", budget="steps", seed=0),
    f"{LOW}+full-tuned-tokens-s10": Arm(LOW, variant="full-tuned", budget="tokens", seed=10),
    f"{LOW}+adapter": Arm(LOW, variant="adapter"),
    f"{LOW}+the-paper's-recipe-0.001-s1": Arm(LOW, variant="the-paper's-recipe-0.001", seed=1),
}


@pytest.mark.parametrize(("name", "arm"), KINDS.items())
def test_the_names_that_run_folders_hold(name, arm):
    assert str(arm) == name
    assert arms.parse(name) == arm
    assert arm.folder == name.replace("+", "-")


def test_the_names_of_full_precision():
    assert (arms.FULL, arms.AGAIN) == ("full", "full+again")


NAMED = st.sampled_from([scheme.name for scheme in schemes.listing()])
VARIANTS = st.sampled_from([*controls.CONTROLS, "located"]) | st.from_regex(r"[a-z'.0-9-]{1,20}", fullmatch=True)


@given(
    NAMED.map(Arm)
    | st.builds(Arm, NAMED, round=st.integers(1, 2000))
    | st.builds(Arm, NAMED, variant=st.sampled_from([*controls.CONTROLS, "located"]), budget=st.sampled_from(["steps", "tokens"]),
                seed=st.integers(0, 10**6))
    | st.sampled_from([Arm(), Arm(variant="again")])
)  # fmt: skip
def test_parsing_undoes_printing(arm):
    assert arms.parse(str(arm)) == arm


@given(st.text("full+restored-12s05tokenspa", max_size=30))
def test_printing_undoes_parsing(name):
    try:
        arm = arms.parse(name)
    except ValueError:
        return
    assert str(arm) == name


@given(
    st.text("a+-s0", max_size=4),
    st.integers(-1, 3),
    VARIANTS | st.just(""),
    st.sampled_from([None, "steps"]),
    st.sampled_from([None, -1, 0]),
)
def test_no_arm_has_the_name_of_another(scheme, number, variant, budget, seed):
    try:
        arm = Arm(scheme, number, variant, budget, seed)
    except ValueError:
        return
    assert arms.parse(str(arm)) == arm


@pytest.mark.parametrize("name", ["", "+restored", "full+restored", f"{LOW}+", f"{LOW}+a+b", "full\n+a+b"])
def test_what_is_no_arm_is_refused(name):
    with pytest.raises(ValueError, match="not an arm"):
        arms.parse(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "full"},
        {"scheme": "a+b"},
        {"scheme": LOW, "variant": "restored"},
        {"scheme": LOW, "variant": "restored-2"},
        {"scheme": LOW, "variant": "x-s1"},
        {"scheme": LOW, "variant": "x-steps"},
        {"scheme": LOW, "round": 1, "seed": 0},
        {"scheme": LOW, "round": 1, "variant": "x"},
        {"scheme": LOW, "budget": "steps"},
        {"scheme": LOW, "seed": 3},
        {"scheme": LOW, "round": -1},
        {"round": 1},
    ],
)
def test_fields_that_a_name_cannot_tell_are_refused(fields):
    with pytest.raises(ValueError, match="not an arm"):
        Arm(**fields)


def test_rounds_of_restoring():
    assert Arm(LOW).restored() == Arm(LOW, round=1)
    assert Arm(LOW).restored(3) == Arm(LOW, round=3)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("out/my-model-awq", "my-model-awq"),
        ("out/my-model-awq/", "my-model-awq"),
        ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "Qwen2.5-0.5B-Instruct-AWQ"),
        ("a folder+restored", "a-folder-restored"),
        ("rtn-w4a16-g64", "rtn-w4a16-g64"),
        ("/x/.hidden", "hidden"),
        ("C:\\models\\low", "low"),
        ("x" * 300, "x" * 100),
        ("line\nbreak\x1b[2J", "line-break-2J"),
    ],
)
def test_a_folder_names_an_arm(path, name):
    arm = of_folder(path)
    assert (str(arm), arm.round, arm.variant) == (name, 0, "")
    assert arms.parse(str(arm.restored(2))) == arm.restored(2)
    assert arm.folder == name


@pytest.mark.parametrize("path", ["", ".", "..", "/", "out/full", "///", "+++", "a/.."])
def test_a_folder_without_a_name_of_its_own_names_none(path):
    with pytest.raises(ValueError, match="cannot be the name of an arm"):
        of_folder(path)
