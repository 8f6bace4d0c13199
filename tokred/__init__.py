"""tokred: token reduction for vision transformers, multimodal LLMs and image tokenizers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    ATP,
    ATS,
    CLCA,
    DPCKNN,
    VTCCLS,
    AIMMerge,
    AIMPrune,
    CorrelationCompression,
    DiffRate,
    DivPrune,
    DynamicViT,
    EViT,
    FastV,
    FoPru,
    GlobalCom2,
    HiRED,
    KMedoids,
    Method,
    PatchMerger,
    PiToMe,
    PruMerge,
    PSigmoid,
    PyramidDrop,
    Random,
    RandomVisual,
    Sinkhorn,
    SiT,
    SMSText,
    SparseVLM,
    SparsityMeetsSimilarity,
    ToMe,
    TopK,
    UniformGrid,
    VisionZip,
    VisPruner,
    ZeroTPrune,
    ZOOPrune,
    create_method,
    methods,
)
from tokred.multimodal import MultimodalHandle
from tokred.patching import Handle, patch, unpatch
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import SoftMap, TokenMap
from tokred.trace import Trace
from tokred.view import LayerView

if TYPE_CHECKING:
    from tokred.clip_assets import load_clip
    from tokred.multimodal_assets import load_multimodal
    from tokred.tokenizer_assets import load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "ATP",
    "ATS",
    "CLCA",
    "DPCKNN",
    "VTCCLS",
    "AIMMerge",
    "AIMPrune",
    "AlreadyPatchedError",
    "BudgetError",
    "ConfigError",
    "CorrelationCompression",
    "Cost",
    "DataError",
    "DiffRate",
    "DivPrune",
    "DynamicViT",
    "EViT",
    "FastV",
    "FoPru",
    "GlobalCom2",
    "Handle",
    "HiRED",
    "KMedoids",
    "LayerView",
    "Method",
    "ModelShape",
    "MultimodalHandle",
    "NonFiniteError",
    "PSigmoid",
    "PatchMerger",
    "PiToMe",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "RandomVisual",
    "SMSText",
    "Schedule",
    "ScheduleMismatchError",
    "SiT",
    "Sinkhorn",
    "SoftMap",
    "SparseVLM",
    "SparsityMeetsSimilarity",
    "ToMe",
    "TokenMap",
    "TokredError",
    "TopK",
    "Trace",
    "UniformGrid",
    "UnsupportedModelError",
    "VisPruner",
    "VisionZip",
    "ZOOPrune",
    "ZeroTPrune",
    "cost",
    "create_method",
    "load_clip",
    "load_multimodal",
    "load_tokenizer",
    "methods",
    "nn",
    "patch",
    "register_adapter",
    "unpatch",
]


_LATER = {
    "load_clip": "tokred.clip_assets",
    "load_multimodal": "tokred.multimodal_assets",
    "load_tokenizer": "tokred.tokenizer_assets",
}


def __getattr__(name: str) -> Any:
    """What needs more libraries than patching does comes when it is asked for."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
