"""A model that is trained with a method inside."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from tokred.methods.base import Method
from tokred.patching import patch

PARTS = "parts.safetensors"


class Inside(nn.Module):
    """A model with a method inside, and the method's learnable parts, as one module with parameters.

    Args:
        network: the model; it is patched, and stays so.
        method: what reduces its tokens, in training and in evaluation alike.
        parts_only: the parameters of the model stay as they are.
    """

    def __init__(self, network: nn.Module, method: Method, *, parts_only: bool = False) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The learnable parts")  # they are about to learn
            self.handle = patch(network, method, trace=True)
        self.network = network.requires_grad_(not parts_only)
        self.parts = self.handle.modules if self.handle.modules is not None else nn.ModuleDict()
        self.parts_only = parts_only

    def train(self, mode: bool = True) -> Inside:
        """Training mode; parameters that stay as they are are used as in evaluation."""
        super().train(mode)
        if self.parts_only:
            self.network.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        """What the patched model gives."""
        return self.network(x)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the model wants to be left out."""
        return {f"network.{name}" for name in getattr(self.network, "no_weight_decay", set)()}

    def penalty(self) -> Tensor | float:
        """What the method adds to the loss of the last forward."""
        masks = self.handle.trace.masks
        return self.handle.method.penalty(masks, self.handle.tower.shape) if masks else 0.0

    def save_parts(self, folder: Path) -> Path | None:
        """Write the learnable parts, if there are any, in half precision: what a method takes as ``weights``."""
        if not len(self.parts):
            return None
        path = folder / PARTS
        folder.mkdir(parents=True, exist_ok=True)
        state = self.parts.state_dict().items()
        save_file({key: (v.half() if v.is_floating_point() else v).contiguous() for key, v in state}, path)
        path.chmod(0o644)
        return path
