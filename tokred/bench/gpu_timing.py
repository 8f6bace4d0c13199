"""Time and memory on a GPU, and what the device can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Clock:
    """Times functions on a device.

    On a GPU: events around batches of calls long enough to measure, with the L2 cache overwritten before every batch of
    a short function; the median of the batches. Dry: one call.
    """

    def __init__(self, device: torch.device, dry: bool = False) -> None:
        self.device = device
        self.dry = dry

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Median time of a call."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - started)
        for _ in range(3):
            function()
        torch.cuda.synchronize(self.device)
        cold = torch.empty(64 * 2**20, dtype=torch.int8, device=self.device)
        times: list[float] = []
        spent = 0.0
        while len(times) < 10 or (spent < 300 and len(times) < 200):
            cold.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize(self.device)
            times.append(start.elapsed_time(end))
            spent += times[-1]
        return sorted(times)[len(times) // 2]

    def peak(self, function: Callable[[], object]) -> int | None:
        """Bytes that a call needs at its worst moment on top of what was there; ``None`` on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def copy_rate(clock: Clock, dry: bool) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.zeros(2**16 if dry else 2**29, dtype=torch.int8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (clock.milliseconds(lambda: target.copy_(source)) / 1e3)


def product_rate(clock: Clock, dtype: torch.dtype, dry: bool) -> float:
    """Floating point operations a second of a large product of matrices, as the kernels compute it (no TF32)."""
    size = 64 if dry else 8192 if dtype != torch.float32 else 4096
    a = torch.randn(size, size, device=clock.device, dtype=dtype)
    return 2 * size**3 / (clock.milliseconds(lambda: a @ a) / 1e3)


def graphed(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same function as one CUDA graph, so that launching costs nothing; on the CPU the function itself."""
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
