"""Every method that a tab offers can be set by every dial that the tab shows for it."""

from __future__ import annotations

import pytest

import tokred
from tokred.demo import choices
from tokred.errors import ConfigError
from tokred.methods import untrained_methods


def test_methods_that_need_training_are_not_offered():
    assert {"tome", "pitome", "diffrate", "topk", "kmedoids"} <= set(untrained_methods())
    assert not {"clca", "dynamicvit", "sit"} & set(untrained_methods())
    assert {"fopru", "divprune", "fastv"} <= set(choices.prompt_methods())
    assert not {"atp", "sparsevlm", "p_sigmoid"} & set(choices.prompt_methods())


@pytest.mark.parametrize("name", untrained_methods())
def test_every_dial_turns_its_method(name):
    dials = choices.dials(name)
    assert dials[0].knob == "budget"
    assert len(dials) == 2
    for dial in dials:
        assert dial.minimum <= dial.value <= dial.maximum
        method = choices.set_method(name, dial.knob, dial.value)
        assert method.name == name
    assert choices.set_method(name, "budget", 55).budget == "55%"


def test_a_dial_of_another_method_falls_back_to_the_budget():
    assert choices.set_method("topk", "r", 60) == tokred.TopK(budget="60%")
    assert choices.set_method("tome", "r", 7.0) == tokred.ToMe(r=7)
    assert choices.set_method("topk", "keep", 0.5) == tokred.TopK(keep=0.5)


def test_a_name_that_is_not_offered_is_refused():
    with pytest.raises(ConfigError, match="'clca' is none of the methods of this tab"):
        choices.set_method("clca", "budget", 55)
