from typing import Any

import pytest

from tokred.errors import ConfigError
from tokred.learn import SearchSpec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quality": "top-1"}, "did you mean 'top1'"),
        ({"cost": "mac"}, "did you mean 'macs'"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"method": "tomme"}, "did you mean 'tome'"),
        ({"knobs": {"rr": 1}}, "no knob 'rr'"),
        ({"knobs": {"r": -1}}, "negative"),
        ({"knobs": {"budget": "60%"}}, "--budget-low"),
        ({"images": 0}, "images 0"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        SearchSpec(**{"model": "m", "method": "tome", "data": "d", **change})


def test_how_it_is_timed_matters_only_where_something_is_timed():
    def identity(**change: Any) -> dict[str, Any]:
        return SearchSpec("m", "tome", "d", **change).identity

    assert identity(batch_size=7, rounds=3, threads=9) == identity()
    assert identity(cost="latency", rounds=3) != identity(cost="latency")
    assert identity(seed=1) != identity()
    assert identity(knobs={"r": (4, 2)}) == identity(knobs={"r": [4, 2]})


@pytest.mark.parametrize(("cost", "column"), [("macs", "gmacs"), ("latency", "speedup")])
def test_the_axes_are_those_of_a_sweep(cost: str, column: str):
    assert [axis.column for axis in SearchSpec("m", "tome", "d", cost=cost).axes] == [column, "top1"]
