"""Where points are measured: in this process, or on a cluster. One file an engine."""

from __future__ import annotations

from typing import Literal

from tokred.errors import ConfigError
from tokred.sweep.engines.base import Engine
from tokred.sweep.engines.local import LocalEngine

EngineName = Literal["local", "ray"]


def create_engine(name: str, address: str | None = None) -> Engine:
    """The engine of that name.

    Args:
        name: local or ray.
        address: of a Ray cluster that runs already; a local one is started if left out.

    Raises:
        ConfigError: no such engine, or an address for one that has none.
        TokredError: Ray is not installed.
    """
    if name == "ray":
        from tokred.sweep.engines.ray import RayEngine

        return RayEngine(address)
    if name != "local":
        raise ConfigError(f"No engine {name!r}. There are: local, ray.")
    if address is not None:
        raise ConfigError(f"--address {address} belongs to a cluster; add --engine ray.")
    return LocalEngine()
