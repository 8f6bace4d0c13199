"""Learning: schedules and keep rates that are searched, and thresholds that are trained, instead of set by hand."""

from tokred.learn.atp_training import ATPSpec, Learned, train_atp
from tokred.learn.choice import Knobs
from tokred.learn.diffrate import Rates
from tokred.learn.diffrate_training import DiffRateSpec, LearnedRates, train_diffrate
from tokred.learn.front import Front, Trial
from tokred.learn.multimodal_search import run_multimodal_search
from tokred.learn.multimodal_spec import MultimodalSpec
from tokred.learn.rates import RATE_SPACES, RateSpace, make_rate_space
from tokred.learn.search import Outcome, Progress, run_search
from tokred.learn.space import SPACES, Space, make_space, sigmoid_rates
from tokred.learn.spec import SearchSpec

__all__ = [
    "RATE_SPACES",
    "SPACES",
    "ATPSpec",
    "DiffRateSpec",
    "Front",
    "Knobs",
    "Learned",
    "LearnedRates",
    "MultimodalSpec",
    "Outcome",
    "Progress",
    "RateSpace",
    "Rates",
    "SearchSpec",
    "Space",
    "Trial",
    "make_rate_space",
    "make_space",
    "run_multimodal_search",
    "run_search",
    "sigmoid_rates",
    "train_atp",
    "train_diffrate",
]
