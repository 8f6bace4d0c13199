"""Token reduction methods, one paper a file."""

from tokred.methods.aim import AIMMerge
from tokred.methods.aim_prune import AIMPrune
from tokred.methods.atp import ATP
from tokred.methods.ats import ATS
from tokred.methods.base import Method
from tokred.methods.clca import CLCA
from tokred.methods.correlation import CorrelationCompression
from tokred.methods.decoder import DecoderMethod
from tokred.methods.diffrate import DiffRate
from tokred.methods.divprune import DivPrune
from tokred.methods.dpcknn import DPCKNN
from tokred.methods.dynamicvit import DynamicViT
from tokred.methods.evit import EViT
from tokred.methods.fastv import FastV
from tokred.methods.fopru import FoPru
from tokred.methods.globalcom2 import GlobalCom2
from tokred.methods.hired import HiRED
from tokred.methods.kmedoids import KMedoids
from tokred.methods.p_sigmoid import PSigmoid
from tokred.methods.patchmerger import PatchMerger
from tokred.methods.pitome import PiToMe
from tokred.methods.prumerge import PruMerge
from tokred.methods.pyramiddrop import PyramidDrop
from tokred.methods.random import Random
from tokred.methods.random_visual import RandomVisual
from tokred.methods.registry import AnyMethod, create_method, methods, register, untrained_methods
from tokred.methods.sinkhorn import Sinkhorn
from tokred.methods.sit import SiT
from tokred.methods.sms import SparsityMeetsSimilarity
from tokred.methods.sms_decoder import SMSText
from tokred.methods.sparsevlm import SparseVLM
from tokred.methods.tome import ToMe
from tokred.methods.topk import TopK
from tokred.methods.uniform import UniformGrid
from tokred.methods.visionzip import VisionZip
from tokred.methods.vispruner import VisPruner
from tokred.methods.vtc_cls import VTCCLS
from tokred.methods.zerotprune import ZeroTPrune
from tokred.methods.zoo_prune import ZOOPrune

__all__ = [
    "ATP",
    "ATS",
    "CLCA",
    "DPCKNN",
    "VTCCLS",
    "AIMMerge",
    "AIMPrune",
    "AnyMethod",
    "CorrelationCompression",
    "DecoderMethod",
    "DiffRate",
    "DivPrune",
    "DynamicViT",
    "EViT",
    "FastV",
    "FoPru",
    "GlobalCom2",
    "HiRED",
    "KMedoids",
    "Method",
    "PSigmoid",
    "PatchMerger",
    "PiToMe",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "RandomVisual",
    "SMSText",
    "SiT",
    "Sinkhorn",
    "SparseVLM",
    "SparsityMeetsSimilarity",
    "ToMe",
    "TopK",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
    "ZOOPrune",
    "ZeroTPrune",
    "create_method",
    "methods",
    "register",
    "untrained_methods",
]
