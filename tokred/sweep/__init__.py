"""Sweeps: methods and schedules on models and images, measured, stored, and drawn."""

from tokred.sweep.axes import AXES, fronts, pareto_front
from tokred.sweep.compare import Difference, compare_results
from tokred.sweep.engines import Engine, create_engine
from tokred.sweep.estimate import estimate_seconds
from tokred.sweep.merge import Merged, merge_results
from tokred.sweep.plot import plot_results
from tokred.sweep.point import UNPATCHED, Point
from tokred.sweep.report import write_report
from tokred.sweep.run import Progress, preview, run_sweep
from tokred.sweep.sink import create_sink
from tokred.sweep.spec import MethodGrid, SweepSpec, load_document, load_spec, parse_spec
from tokred.sweep.store import StorageError, Store, read_results
from tokred.sweep.yaml import Document

__all__ = [
    "AXES",
    "UNPATCHED",
    "Difference",
    "Document",
    "Engine",
    "Merged",
    "MethodGrid",
    "Point",
    "Progress",
    "StorageError",
    "Store",
    "SweepSpec",
    "compare_results",
    "create_engine",
    "create_sink",
    "estimate_seconds",
    "fronts",
    "load_document",
    "load_spec",
    "merge_results",
    "pareto_front",
    "parse_spec",
    "plot_results",
    "preview",
    "read_results",
    "run_sweep",
    "write_report",
]
