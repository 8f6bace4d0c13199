"""Token reduction methods, one paper a file."""

from tokred.methods.ats import ATS
from tokred.methods.base import Method, create_method, methods, register
from tokred.methods.diffrate import DiffRate
from tokred.methods.evit import EViT
from tokred.methods.pitome import PiToMe
from tokred.methods.random import Random
from tokred.methods.tome import ToMe
from tokred.methods.topk import TopK
from tokred.methods.zerotprune import ZeroTPrune

__all__ = [
    "ATS",
    "DiffRate",
    "EViT",
    "Method",
    "PiToMe",
    "Random",
    "ToMe",
    "TopK",
    "ZeroTPrune",
    "create_method",
    "methods",
    "register",
]
