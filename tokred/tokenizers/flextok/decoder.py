"""From registers and noise to a picture: one step of a rectified flow, told by any number of the first registers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from tokred.tokenizers.flextok.blocks import ModulatedBlock, initialise, modulate, norm
from tokred.tokenizers.flextok.config import FlexTokConfig
from tokred.tokenizers.flextok.dropout import drop_all, drop_tail
from tokred.tokenizers.flextok.masks import MaskMode, attention_mask
from tokred.tokenizers.flextok.patches import patchify, unpatchify
from tokred.tokenizers.flextok.positions import Positions
from tokred.tokenizers.flextok.times import TimeEmbedding

_NOISE = 0.3  # of the usual weights, for noised pictures at the start of training
_EARLIEST = 0.05  # an image prediction is turned into a velocity as if no time were earlier


class Head(nn.Module):
    """From patch tokens to a picture; where it is modulated, the time shifts and scales the normalised tokens."""

    def __init__(self, dim: int, patch: int, channels: int, *, modulated: bool = True):
        super().__init__()
        self.patch = patch
        self.modulation = nn.Linear(dim, 2 * dim) if modulated else None
        self.proj = nn.Linear(dim, patch**2 * channels)

    def forward(self, x: Tensor, time: Tensor, height: int, width: int) -> Tensor:
        """Return [B, C, H, W] for the tokens [B, N, D] of a grid; ``time`` is SiLU of its embedding."""
        x = norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation(time)[:, None].chunk(2, -1)
            x = modulate(x, shift, scale, x.shape[1:2])
        return unpatchify(self.proj(x), self.patch, height, width)


class Decoder(nn.Module):
    """[noised patches | registers], attention among all, modulated by the time; modulation and head start at zero."""

    null: Tensor | None

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        trunk, grid = config.decoder, config.grid
        width = trunk.width
        self.patch, self.prediction = config.patch, config.prediction
        self.mask: MaskMode = trunk.mask
        self.num_registers = config.registers
        self.from_codes = nn.Linear(len(config.levels), width)
        self.register_positions = Positions(width, (config.registers,), config.register_positions)
        self.mask_token = nn.Parameter(torch.empty(width))
        if config.null == "learned":
            self.null = nn.Parameter(torch.empty(width))
        else:
            self.register_buffer("null", torch.zeros(width) if config.null == "zero" else None, persistent=False)
        self.patch_embed = nn.Linear(config.patch**2 * config.channels, width)
        self.positions = Positions(width, (grid, grid), trunk.positions, trunk.scaling)
        self.time = TimeEmbedding(width, config.time_features, config.max_time)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, trunk.head_width, trunk.hidden, config.groups) for _ in range(trunk.depth)
        )
        self.head = Head(width, config.patch, config.channels, modulated=config.modulated_head)
        initialise(self)
        nn.init.zeros_(self.head.proj.weight)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        with torch.no_grad():
            self.patch_embed.weight *= _NOISE  # places must be seen through the noise
            # and patches find the register that looked at their place
            self.register_positions.table += self.positions.spread(config.registers).T[None, None]
        if isinstance(self.null, nn.Parameter):
            nn.init.trunc_normal_(self.null, std=0.02)

    def condition(self, codes: Tensor, keep: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        """Return the registers [B, K, D] that steps read.

        Args:
            codes: [B, k, d] with k up to K; places that are not given count as dropped.
            keep: how many of the first to read, int64 [B]; by default all that are given.
            drop: bool [B], the samples that get the null condition.
        """
        count = codes.shape[1]
        if count < self.num_registers:
            codes = pad(codes, (0, 0, 0, self.num_registers - count))
            limit = torch.full((len(codes),), count, device=codes.device)
            keep = limit if keep is None else keep.clamp(max=count)
        registers = self.from_codes(codes)
        registers = registers + self.register_positions(self.num_registers).to(registers.dtype)
        if keep is not None:
            registers = drop_tail(registers, keep, self.mask_token)
        if drop is not None and self.null is not None:
            registers = drop_all(registers, drop, self.null)
        return registers

    def unconditional(self, batch: int) -> Tensor:
        """Return the registers [B, K, D] of the null condition."""
        assert self.null is not None, "FlexTok refuses guidance without a null condition"
        return self.null.expand(batch, self.num_registers, -1)

    def forward(self, noised: Tensor, t: Tensor, registers: Tensor, tap: int | None = None) -> Tensor:
        """Return what the head says for noised images [B, C, H, W] at times [B] or [1]: a velocity or a picture.

        Args:
            noised: pictures on their way.
            t: times.
            registers: of :meth:`condition`.
            tap: return the patch tokens [B, N, D] behind this block instead.
        """
        height, width = (size // self.patch for size in noised.shape[-2:])
        x = self.patch_embed(patchify(noised, self.patch))
        x = torch.cat([x + self.positions(height, width).to(x.dtype), registers.to(x.dtype)], 1)
        sizes = (height * width, self.num_registers)
        mask = attention_mask(self.mask, *sizes, x.device)
        time = silu(self.time(t)).to(x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, time, sizes, mask)
            if index == tap:
                return x[:, : sizes[0]]
        return self.head(x[:, : sizes[0]], time, height, width)

    def velocity(self, noised: Tensor, t: Tensor, registers: Tensor) -> Tensor:
        """Return the velocity [B, C, H, W], whatever the head predicts."""
        said = self(noised, t, registers)
        return said if self.prediction == "velocity" else (noised - said) / _pace(t)

    def estimate(self, noised: Tensor, t: Tensor, registers: Tensor) -> Tensor:
        """Return the picture [B, C, H, W] that one step to time 0 would end at."""
        said = self(noised, t, registers)
        return said if self.prediction == "image" else noised - t.view(-1, 1, 1, 1) * said


def _pace(t: Tensor) -> Tensor:
    return t.clamp(min=_EARLIEST).view(-1, 1, 1, 1)
