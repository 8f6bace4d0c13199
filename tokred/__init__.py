"""tokred: token reduction for vision transformers, multimodal LLMs and image tokenizers."""

from tokred import nn
from tokred.adapters import register_adapter
from tokred.cost import Cost, cost
from tokred.errors import (
    AlreadyPatchedError,
    BudgetError,
    ConfigError,
    DataError,
    NonFiniteError,
    ScheduleMismatchError,
    TokredError,
    UnsupportedModelError,
)
from tokred.methods import (
    ATS,
    DiffRate,
    EViT,
    Method,
    PiToMe,
    Random,
    ToMe,
    TopK,
    ZeroTPrune,
    create_method,
    methods,
)
from tokred.patching import Handle, patch, unpatch
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.trace import Trace
from tokred.view import LayerView

__version__ = "0.1.0"

__all__ = [
    "ATS",
    "AlreadyPatchedError",
    "BudgetError",
    "ConfigError",
    "Cost",
    "DataError",
    "DiffRate",
    "EViT",
    "Handle",
    "LayerView",
    "Method",
    "ModelShape",
    "NonFiniteError",
    "PiToMe",
    "Random",
    "Schedule",
    "ScheduleMismatchError",
    "ToMe",
    "TokenMap",
    "TokredError",
    "TopK",
    "Trace",
    "UnsupportedModelError",
    "ZeroTPrune",
    "cost",
    "create_method",
    "methods",
    "nn",
    "patch",
    "register_adapter",
    "unpatch",
]
