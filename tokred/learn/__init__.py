"""Learning: schedules that are searched instead of written by hand."""

from tokred.learn.front import Front, Trial
from tokred.learn.search import Outcome, Progress, run_search
from tokred.learn.space import SPACES, Space, make_space, sigmoid_rates
from tokred.learn.spec import SearchSpec

__all__ = [
    "SPACES",
    "Front",
    "Outcome",
    "Progress",
    "SearchSpec",
    "Space",
    "Trial",
    "make_space",
    "run_search",
    "sigmoid_rates",
]
