"""Counting floating-point operations in the thread that runs them, and nowhere else."""

from __future__ import annotations

from contextlib import nullcontext

from torch.utils.flop_counter import FlopCounterMode


class FlopCounter(FlopCounterMode):
    """torch's counter, without telling modules apart.

    For that it hooks every module of the process while it is open, and forwards in other threads run into the hooks.

    >>> import torch
    >>> with FlopCounter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.get_total_flops()
    48
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _OneModule()  # pyright: ignore[reportAttributeAccessIssue]


class _OneModule(nullcontext[None]):
    """Says that everything happens in the module that totals are read from."""

    parents = frozenset({"Global"})

    def __exit__(self, *exception: object) -> None:
        """Torch leaves it without arguments."""
