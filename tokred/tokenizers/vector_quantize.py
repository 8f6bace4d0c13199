"""Vector quantisation: the nearest of a learned set of directions."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, mse_loss, normalize


class VectorQuantizer(nn.Module):
    """Replaces z [..., d] by the nearest entry of a codebook; both have length one.

    Args:
        size: entries.
        dim: numbers of an entry.
        commitment: weight of pulling ``z`` to its entry, against pulling the entry to ``z``.
    """

    def __init__(self, size: int, dim: int, commitment: float = 0.25):
        super().__init__()
        self.size, self.commitment = size, commitment
        self.codebook = nn.Parameter(torch.randn(size, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the entries [..., d], which pass gradients through to ``z``, their ids [...], and the loss."""
        with torch.autocast(z.device.type, enabled=False):
            z = normalize(z.float(), dim=-1)
            entries = normalize(self.codebook.float(), dim=-1)
            ids = (z @ entries.T).argmax(-1)
            chosen = embedding(ids, entries)
            loss = mse_loss(chosen, z.detach()) + self.commitment * mse_loss(z, chosen.detach())
            return z + (chosen - z).detach(), ids, loss

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the entries [..., d] of ids [...]."""
        return normalize(embedding(ids, self.codebook.float()), dim=-1)
