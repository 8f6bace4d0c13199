import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokred
from tokred.learn import SPACES, make_space, sigmoid_rates

SHAPE = tokred.ModelShape.vit(depth=6, dim=48, heads=4, patches=64)
METHODS = sorted(tokred.methods())


def space_of(name: str, method: str = "topk", low: str = "50%", high: str = "80%"):
    return make_space(name, tokred.create_method(method), SHAPE, low, high)


@st.composite
def choices(draw: st.DrawFn):
    space = space_of(draw(st.sampled_from(sorted(SPACES))), draw(st.sampled_from(METHODS)))
    return space, {name: draw(st.floats(r.low, r.high)) for name, r in space.ranges.items()}


@settings(max_examples=40, deadline=None)
@given(choices())
def test_every_choice_is_a_schedule_within_its_budget(choice):
    space, numbers = choice
    schedule = space.schedule(numbers)
    tokens = schedule.tokens(SHAPE.num_tokens)
    assert all(after <= before for before, after in zip((SHAPE.num_tokens, *tokens), tokens, strict=False))
    assert space.method.with_(schedule=schedule).plan(SHAPE) == schedule, "it respects what must stay"
    assert space.method.cost(SHAPE, schedule).macs <= numbers["budget"] * tokred.cost(SHAPE).macs


@pytest.mark.parametrize("name", sorted(SPACES))
def test_a_budget_is_used_up(name: str):
    space = space_of(name)
    numbers = {key: (r.low + r.high) / 2 for key, r in space.ranges.items()} | {"layer 1": 0.5, "layer 4": 1.0}
    for share in (0.5, 0.65, 0.8):
        macs = space.method.cost(SHAPE, space.schedule({**numbers, "budget": share})).macs
        assert share - 0.03 < macs / tokred.cost(SHAPE).macs <= share


def test_a_layer_with_a_weight_below_zero_is_left_alone():
    numbers = {f"layer {i}": -0.1 for i in range(6)} | {"layer 2": 0.5, "layer 4": 1.0, "budget": 0.7}
    tokens = (65, *space_of("counts").schedule(numbers).tokens(65))
    assert [i for i in range(6) if tokens[i + 1] < tokens[i]] == [2, 4]


def test_every_form_of_counts_reaches_every_budget():
    numbers = {f"layer {i}": -1.0 for i in range(6)} | {"budget": 0.3}
    schedule = space_of("counts", low="30%").schedule(numbers)
    assert space_of("counts").method.cost(SHAPE, schedule).macs <= 0.3 * tokred.cost(SHAPE).macs


@given(st.integers(1, 40), st.floats(0.001, 0.999), st.floats(0.05, 20))
def test_the_rates_of_a_sigmoid_fall_and_have_the_mean_that_was_asked_for(depth: int, mean: float, steepness: float):
    rates = sigmoid_rates(depth, mean, steepness)
    assert sum(rates) / depth == pytest.approx(mean, abs=1e-6)
    assert list(rates) == sorted(rates, reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)


def test_a_sigmoid_gives_the_counts_of_its_reference():
    """28 layers, mean 0.25, k = 1, 1000 tokens; 32 layers, mean 0.5, k = 0.2, 576 tokens."""
    counts = [round(1000 * rate) for rate in sigmoid_rates(28, 0.25, 1.0)]
    assert counts[:15] == [998, 996, 989, 971, 924, 817, 622, 377, 182, 76, 29, 11, 4, 1, 1]
    assert not any(counts[15:])
    counts = [round(576 * rate) for rate in sigmoid_rates(32, 0.5, 0.2)]
    assert counts[:8] + counts[-4:] == [551, 546, 540, 532, 524, 513, 501, 487, 44, 36, 30, 25]


def test_a_mean_of_one_keeps_everything_and_nonsense_is_refused():
    assert sigmoid_rates(3, 1.0, 2.0) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"mean=0\.0"):
        sigmoid_rates(3, 0.0, 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_of_a_schedule_in_counts_lead_back_to_it(method: str):
    space = space_of("counts", method)
    wanted = tokred.create_method(method, budget="65%").plan(SHAPE)
    found = space.schedule(space.numbers(wanted, 0.65))
    for before, after in zip(wanted.tokens(65), found.tokens(65), strict=True):
        assert abs(before - after) <= 1
    assert space.numbers(wanted, 0.65).keys() == space.ranges.keys()


@pytest.mark.parametrize("method", ["tome", "zerotprune"])
def test_the_numbers_of_a_sigmoid_lead_back_to_it(method: str):
    space = space_of("sigmoid", method)
    numbers = dict.fromkeys(space.shares, 0.5) | {"steepness": space.form["steepness"].low, "budget": 0.6}
    assert space.numbers(space.schedule(numbers), 0.6)["steepness"] == pytest.approx(numbers["steepness"])


@pytest.mark.parametrize(
    ("low", "nearest"), [("1%", r"is \d+\.\d+%"), ("0.0001 GMACs", r"is 0\.00\d+ GMACs"), ("1 tokens", "is 2 tokens")]
)
@pytest.mark.parametrize("name", sorted(SPACES))
def test_a_budget_that_cannot_be_met_is_answered_with_the_nearest_that_can(name: str, low: str, nearest: str):
    high = {"%": "80%", "s": "1 GMACs" if "GMACs" in low else "60 tokens"}[low[-1]]
    with pytest.raises(tokred.BudgetError, match=f"{low} is out of reach.*{nearest}") as refusal:
        space_of(name, "topk", low, high.replace("1 GMACs", "0.005 GMACs"))
    possible = str(refusal.value).partition("can be met is ")[2].rstrip(".")
    space = space_of(name, "topk", possible, possible)
    space.schedule({key: r.high for key, r in space.ranges.items()})


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        ("80%", "40%", "80% is above the higher one, 40%"),
        ("40%", "60 tokens", "share and in tokens"),
        ("50 tokens", "70 tokens", "the highest budget is 65 tokens"),
        ("40", "80%", "Cannot read the budget"),
    ],
)
def test_budgets_that_contradict_each_other_are_refused(low: str, high: str, sentence: str):
    with pytest.raises(tokred.BudgetError, match=sentence):
        space_of("counts", "topk", low, high)


def test_an_unknown_space_is_answered_with_the_nearest():
    with pytest.raises(tokred.ConfigError, match="did you mean 'sigmoid'"):
        make_space("sigmod", tokred.TopK(), SHAPE, "40%", "80%")
