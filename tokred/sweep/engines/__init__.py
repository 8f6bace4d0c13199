"""Where points are measured: in this process, in several, or on a cluster. One file an engine."""

from __future__ import annotations

from typing import Literal

import torch

from tokred.errors import ConfigError
from tokred.sweep.engines.base import Engine
from tokred.sweep.engines.local import LocalEngine
from tokred.sweep.engines.processes import ProcessEngine

EngineName = Literal["local", "ray"]


def create_engine(name: str, address: str | None = None, processes: int | None = None, device: str = "cpu") -> Engine:
    """The engine of that name.

    Args:
        name: local or ray.
        address: of a Ray cluster that runs already; a local one is started if left out.
        processes: points that are measured side by side on this machine; one for every GPU if left out.
        device: where points are measured; "cuda" means every GPU, "cuda:1" that one.

    Raises:
        ConfigError: no such engine, or an address or processes for one that has none.
        TokredError: Ray is not installed.
    """
    if name == "ray":
        from tokred.sweep.engines.ray import RayEngine

        if processes is not None:
            raise ConfigError(f"processes: {processes} belongs to the engine local; a cluster takes what it has.")
        return RayEngine(address)
    if name != "local":
        raise ConfigError(f"No engine {name!r}. There are: local, ray.")
    if address is not None:
        raise ConfigError(f"--address {address} belongs to a cluster; add --engine ray.")
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    count = processes or gpus or 1
    return LocalEngine() if count == 1 else ProcessEngine(count, gpus)
