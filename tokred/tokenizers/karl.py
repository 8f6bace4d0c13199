"""KARL: one look at a picture says how many tokens a requested error needs."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokred.tokenizers.base import PAD, Tokenizer
from tokred.tokenizers.halting import GRID, attention_allowed, calibrated_index, grid_index, is_halted
from tokred.tokenizers.latents import Bottleneck, LatentConfig, LatentDecoder, LatentEncoder
from tokred.tokenizers.registry import register

DEFAULT_QUALITY = 0.05


class KARLConfig(LatentConfig):
    """A whole KARL.

    ``reached`` is the mean error on held-out pictures where each value of the grid was asked for. What a user requests
    is translated by it; without, it goes in as it is, and what comes out is mostly smaller.
    """

    architecture: Literal["karl"] = "karl"
    reached: tuple[float, ...] | None = Field(default=None, min_length=len(GRID), max_length=len(GRID))


@register("karl")
class KARL(Tokenizer):
    """Learned latents with a head that says which of them are not needed for the error that a first token asks for.

    Duggal et al., arXiv 2507.07995, written from the paper's mathematics; pictures are drawn directly, without a
    tokenizer below. Tokens that halt need not be the last ones: codes have -1 at their places.
    """

    spec = KARLConfig

    def __init__(self, config: KARLConfig):
        super().__init__()
        self.config = config
        self.num_tokens, self.channels, self.side = config.tokens, config.channels, config.side
        width = config.encoder.width
        self.encoder, self.quantizer = LatentEncoder(config), Bottleneck(config)
        self.vocabulary = self.quantizer.size
        self.commands = nn.Parameter(torch.tensor(GRID)[:, None].repeat(1, width))
        self.to_codes = nn.Linear(width, self.quantizer.dim)
        self.halting = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.decoder = LatentDecoder(config, self.quantizer.dim)

    @property
    def grid(self) -> Tensor:
        """The errors that can be requested; float32 whatever the model computes in."""
        return torch.tensor(GRID, device=self.device)

    def read(self, images: Tensor, command: Tensor, tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what is to be quantised [B, T, d] and the halting logits [B, T].

        Args:
            images: prepared pictures.
            command: index of the requested error in the grid, [B].
            tokens: only so many latents.
        """
        latents = self.encoder(images, self.commands[command][:, None], tokens)
        return self.to_codes(latents), self.halting(latents).squeeze(-1)

    def draw(self, codes: Tensor, halted: Tensor | None = None) -> Tensor:
        """Return images of codes [B, T, d], without what the halted tokens [B, T] say."""
        mask = None if halted is None else attention_allowed(halted, self.decoder.grid**2)[:, None]
        return self.decoder(codes, mask)

    @torch.no_grad()
    def encode(self, images: Tensor, *, tokens: int | None = None, quality: float | None = None) -> Tensor:
        """Return the codes int64 [B, K]; -1 where a token is not needed for the requested error.

        Args:
            images: [B, C, H, W], bytes or floats in [-1, 1].
            tokens: at most so many.
            quality: mean absolute error over the pictures, with pixels in [0, 1]; the nearest that can be asked for.
                0.05 if left out.
        """
        self.check_tokens(tokens)
        images = self.prepare(images)
        command = self._command(DEFAULT_QUALITY if quality is None else quality, len(images))
        z, logits = self.read(images, command, tokens)
        return self.quantizer(z)[1].masked_fill(is_halted(logits), PAD)

    @torch.no_grad()
    def decode(self, codes: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        """Return pictures [B, C, H, W], about in [-1, 1]; tokens that are -1 say nothing, and nothing is made up."""
        codes = self.check_codes(codes)
        return self.draw(self.quantizer.codes_of(codes.clamp(min=0)), codes == PAD)

    @torch.no_grad()
    def tokens_for(self, images: Tensor, quality: float = DEFAULT_QUALITY) -> Tensor:
        """Return how many tokens int64 [B] the model takes each picture to need; nothing is drawn."""
        images = self.prepare(images)
        _, logits = self.read(images, self._command(quality, len(images)))
        return self.num_tokens - is_halted(logits).sum(1)

    def _command(self, quality: float, batch: int) -> Tensor:
        wanted = torch.full((batch,), float(quality), device=self.device)
        if self.config.reached is None:
            return grid_index(wanted, self.grid)
        return torch.full_like(wanted, calibrated_index(quality, self.config.reached), dtype=torch.int64)
