"""Schedules: laws, files, budgets and what they refuse."""

import pytest

import tokred
from tokred import Schedule
from tokred.schedule import Budget, removals, share_of

SHAPE = tokred.ModelShape.vit(depth=12, dim=384, heads=6, patches=196)


def test_a_schedule_survives_its_file(tmp_path):
    schedule = Schedule({"prune": (9, 8), "merge": (8, 5)}, name="two", source="a: test # here", num_tokens=10)
    schedule.save(tmp_path / "two.yaml")
    loaded = Schedule.load(tmp_path / "two.yaml")
    assert loaded == schedule
    assert (loaded.name, loaded.source, loaded.num_tokens) == ("two", "a: test # here", 10)


def test_tokens_are_the_running_minimum_of_all_tracks():
    schedule = Schedule({"prune": (37, 30, 33, 20), "merge": (34, 26, 29, 12)})
    assert schedule.tokens(37) == (34, 26, 26, 12)


def test_an_unknown_key_in_a_file_is_named_with_the_nearest_known_one(tmp_path):
    (tmp_path / "s.yaml").write_text("trakcs: {}\ntracks: {merge: [3]}\n")
    with pytest.raises(tokred.ConfigError, match=r"'trakcs'; did you mean 'tracks'"):
        Schedule.load(tmp_path / "s.yaml")


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(tokred.DataError, match=r"deit_small_2\.9g"):
        Schedule.load("deit_small_2.9")


def test_every_shipped_schedule_loads_and_falls_to_its_last_count():
    from tokred.folders import shipped_folder

    files = sorted(shipped_folder("configs/schedules").glob("*.yaml"))
    assert len(files) >= 18
    for file in files:
        schedule = Schedule.load(file.stem)
        assert schedule.source
        assert schedule.num_tokens is not None
        tokens = schedule.tokens(schedule.num_tokens)
        assert tokens[-1] == min(tokens) < schedule.num_tokens


def test_a_schedule_for_another_depth_is_refused_with_both_depths():
    method = tokred.DiffRate(schedule="deit_small_2.9g")
    shape = tokred.ModelShape.vit(depth=24, dim=1024, heads=16, patches=196)
    with pytest.raises(tokred.ScheduleMismatchError, match="12 layers, the model has 24 blocks"):
        method.plan(shape)


def test_a_schedule_with_other_tracks_is_refused():
    with pytest.raises(tokred.ScheduleMismatchError, match=r"\['merge', 'prune'\].*\['merge'\]"):
        tokred.ToMe(schedule="deit_small_2.9g").plan(SHAPE)


def test_a_schedule_that_keeps_nothing_is_refused():
    with pytest.raises(tokred.ScheduleMismatchError, match="at least 1"):
        Schedule({"merge": (5, 0)})


@pytest.mark.parametrize("budget", ["2.9 GMACs", "60%", "96 tokens"])
@pytest.mark.parametrize("name", sorted(tokred.methods()))
def test_every_method_meets_every_kind_of_budget_closely(name, budget):
    method = tokred.create_method(name, budget=budget)
    spent = method.cost(SHAPE)
    wanted = Budget.parse(budget)
    limit = wanted.limit(tokred.cost(SHAPE))
    assert wanted.measure(spent) <= limit
    assert wanted.measure(spent) >= 0.93 * limit, "the gentlest schedule within the budget comes close to it"


def test_a_budget_above_the_model_reduces_nothing():
    assert tokred.ToMe(budget="100%").plan(SHAPE).tokens(197) == (197,) * 12


def test_a_budget_out_of_reach_says_what_the_least_is():
    with pytest.raises(tokred.BudgetError, match=r"out of reach.*needs \d+\.\d+ GMACs"):
        tokred.ToMe(budget="0.1 GMACs").plan(SHAPE)


@pytest.mark.parametrize("text", ["", "fast", "4", "-3 GMACs", "0%", "140%", "3 apples"])
def test_a_budget_that_cannot_be_read_shows_how_to_write_one(text):
    with pytest.raises(tokred.BudgetError, match=r"'2\.9 GMACs', '60%' or '96 tokens'"):
        Budget.parse(text)


def test_flops_are_refused_because_they_are_ambiguous():
    with pytest.raises(tokred.BudgetError, match="One MAC is two FLOPs"):
        Budget.parse("4.6 GFLOPs")


def test_schedule_and_budget_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        tokred.ToMe(schedule="deit_small_2.9g", budget="60%")


@pytest.mark.parametrize(
    ("r", "expected"),
    [
        (3, (3, 3, 3, 3)),
        ([3, 2], (3, 2, 0, 0)),
        ((4, -1.0), (8, 5, 2, 0)),
        ((4, 1.0), (0, 2, 5, 8)),
        ((4, 0.0), (4, 4, 4, 4)),
    ],
)
def test_removals_follow_the_paper_and_cut_fractions_off(r, expected):
    assert removals(r, 4) == expected


def test_a_falling_schedule_of_one_layer_is_defined():
    assert removals((4, -1.0), 1) == (8,)


@pytest.mark.parametrize("r", [-1, [2, -1], (-3, 0.5), (3, 1.5)])
def test_negative_removals_and_wild_inflections_are_refused(r):
    with pytest.raises(ValueError, match="negative"):
        tokred.ToMe(r=r)


@pytest.mark.parametrize("keep", [0, -3, 0.0, -0.1, 1.01, True, "half"])
@pytest.mark.parametrize("name", ["pitome", "diffrate", "evit", "topk", "ats", "random", "zerotprune"])
def test_a_share_outside_its_range_is_refused(name, keep):
    with pytest.raises(ValueError, match=r"keep="):
        tokred.create_method(name, keep=keep)


def test_an_int_is_tokens_and_a_float_is_a_share():
    assert share_of(1, 196) == 1 / 196
    assert share_of(1.0, 196) == 1.0


def test_too_large_r_is_clamped_to_half_of_the_patches():
    assert tokred.ToMe(r=16).plan(SHAPE).tokens(197) == (181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11)
    assert tokred.ToMe(r=10_000).plan(SHAPE).tokens(197)[0] == 99


def test_unknown_methods_and_knobs_are_named_with_the_nearest():
    with pytest.raises(tokred.ConfigError, match="'tomee'; did you mean 'tome'"):
        tokred.create_method("tomee")
    with pytest.raises(tokred.ConfigError, match="no knob 'keeep'; did you mean 'keep'"):
        tokred.create_method("evit", keeep=0.5)
