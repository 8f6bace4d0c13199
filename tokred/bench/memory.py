"""Peak memory of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEASURES = {
    "cuda": "max_memory_allocated during a forward, less what was allocated before it",
    "cpu": "bytes of all tensors alive at once during a forward that it made itself",
}


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that a call needs at its worst moment on top of what was there before: activations, not weights.

    On CUDA the allocator says it (workspaces of kernels included). Elsewhere the tensors that are alive after every
    operator are added up: that is exact and the same in every run, but workspaces inside an operator are not seen.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        function()
    return live.peak


def resident_peak(function: Callable[[], object]) -> int | None:
    """Bytes of the whole process in memory at the worst moment of a call: libraries and weights are among them.

    The kernel keeps the peak (``VmHWM``) and is told to begin anew. ``None`` where it is not Linux's.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        function()
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too small: that of a GPU, as Python or as torch says it, or in the words of Ray."""
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error)


def memory_measure(device: torch.device | str) -> str:
    """In words, what :func:`peak_memory` measures there."""
    return MEASURES["cuda" if torch.device(device).type == "cuda" else "cpu"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make while this context is open.

    >>> with LiveBytes() as live:
    ...     x = torch.ones(256)
    ...     y = x[:128] + 1
    >>> live.peak
    1536
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_address(t) for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if _address(tensor) not in before and storage._cdata not in self._alive:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
