"""From a picture to a row of registers: the first ones say most."""

import torch
from torch import Tensor, nn

from tokred.tokenizers.flextok.blocks import Block, initialise, norm
from tokred.tokenizers.flextok.config import FlexTokConfig
from tokred.tokenizers.flextok.dropout import Ordering, first_registers
from tokred.tokenizers.flextok.masks import MaskMode, attention_mask
from tokred.tokenizers.flextok.patches import patchify
from tokred.tokenizers.flextok.positions import Positions


class Encoder(nn.Module):
    """Patches, with learned registers behind them; what the registers became is projected to a few numbers each.

    With the prefix mask a register sees all patches and the registers before it. Asking for fewer of them gives the
    same numbers and costs less.
    """

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        trunk, grid = config.encoder, config.grid
        self.patch = config.patch
        self.mask: MaskMode = trunk.mask
        self.ordering: Ordering = config.ordering
        self.patch_embed = nn.Linear(config.patch**2 * config.channels, trunk.width)
        self.positions = Positions(trunk.width, (grid, grid), trunk.positions, trunk.scaling)
        self.registers = nn.Parameter(torch.empty(config.registers, trunk.width))
        self.blocks = nn.ModuleList(Block(trunk.width, trunk.head_width, trunk.hidden) for _ in range(trunk.depth))
        self.to_codes = nn.Linear(trunk.width, len(config.levels))
        initialise(self)
        nn.init.trunc_normal_(self.registers, std=0.02)
        with torch.no_grad():  # each begins by looking at another place, the first ones far apart
            self.registers += self.positions.spread(config.registers)
        # A head of zeros would start with one id for everything, and registers that nothing tells apart.
        nn.init.trunc_normal_(self.to_codes.weight, std=trunk.width**-0.5)

    def embed(self, images: Tensor) -> Tensor:
        """Return the patch tokens [B, N, D] with their positions, for images [B, C, H, W]."""
        height, width = (size // self.patch for size in images.shape[-2:])
        x = self.patch_embed(patchify(images, self.patch))
        return x + self.positions(height, width).to(x.dtype)

    def forward(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """Return what is to be quantised, [B, K, d]; only the first ``tokens`` of the K where that is given."""
        patches = self.embed(images)
        count = len(self.registers) if tokens is None else tokens
        registers = first_registers(self.registers, count, self.ordering).to(patches.dtype)
        mask = attention_mask(self.mask, patches.shape[1], count, patches.device)
        x = torch.cat([patches, registers.expand(len(patches), -1, -1)], 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.to_codes(norm(x[:, -count:]))
