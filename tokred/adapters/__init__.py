"""Knowledge of foreign models, one family a file. The family that is imported last is asked first."""

from tokred.adapters.base import Adapter, Tower, find_tower, registry
from tokred.adapters.custom import register_adapter
from tokred.adapters.huggingface import HuggingFaceAdapter
from tokred.adapters.open_clip import OpenClipAdapter
from tokred.adapters.timm import TimmAdapter

__all__ = [
    "Adapter",
    "HuggingFaceAdapter",
    "OpenClipAdapter",
    "TimmAdapter",
    "Tower",
    "find_tower",
    "register_adapter",
    "registry",
]
