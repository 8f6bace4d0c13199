"""A model that something is learned inside of, and that learns nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight of the model learns, and it runs as in evaluation; afterwards it is as it was."""
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = {module: module.training for module in model.modules()}
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for parameter, flag in learning.items():
            parameter.requires_grad_(flag)
        for module, mode in training.items():
            module.training = mode
