"""What a call costs in energy, where the driver of the device counts it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tokred.bench.timing import wait

_SECONDS = 2.0  # of work that is measured: counters are brought up to date a few times a second


def joules(function: Callable[[], object], device: torch.device | str) -> float | None:
    """Energy of one call: all that the device takes meanwhile, what it takes at rest included.

    NVIDIA's management library (NVML, package ``nvidia-ml-py``) counts millijoules since the driver was loaded.
    ``None`` where it does not: on other devices, without the package, on GPUs before Volta, on a part of a GPU (MIG).
    """
    device = torch.device(device)
    read = _counter(device)
    if read is None:
        return None
    function()
    wait(device)
    before, started, calls = read(), time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS:
        function()
        wait(device)
        calls += 1
    return (read() - before) / 1e3 / calls


def _counter(device: torch.device) -> Callable[[], int] | None:
    """What reads the millijoules of a device."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - an extra

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
