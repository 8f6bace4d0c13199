"""TiTok: the special case of a fixed number of tokens."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tokred.errors import DataError
from tokred.tokenizers.base import PAD, Tokenizer
from tokred.tokenizers.latents import Bottleneck, LatentConfig, LatentDecoder, LatentEncoder
from tokred.tokenizers.registry import register


class TiTokConfig(LatentConfig):
    """A whole TiTok."""

    architecture: Literal["titok"] = "titok"


@register("titok")
class TiTok(Tokenizer):
    """Learned latents with a class token beside them, a codebook, and a decoder that draws at once.

    Yu et al., arXiv 2406.07550, written from the paper's mathematics; pictures are drawn directly, without a
    tokenizer below.
    """

    spec = TiTokConfig

    def __init__(self, config: TiTokConfig):
        super().__init__()
        self.config = config
        self.num_tokens, self.channels, self.side = config.tokens, config.channels, config.side
        self.encoder, self.quantizer = LatentEncoder(config), Bottleneck(config)
        self.vocabulary = self.quantizer.size
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.encoder.width), std=0.02))
        self.to_codes = nn.Linear(config.encoder.width, self.quantizer.dim)
        self.decoder = LatentDecoder(config, self.quantizer.dim)

    def read(self, images: Tensor) -> Tensor:
        """Return what is to be quantised [B, K, d] of prepared pictures."""
        return self.to_codes(self.encoder(images, self.class_token.expand(len(images), -1, -1)))

    @torch.no_grad()
    def encode(self, images: Tensor, *, tokens: int | None = None, quality: float | None = None) -> Tensor:
        """Return the codes int64 [B, K] of pictures [B, C, H, W], bytes or floats in [-1, 1]; K is fixed."""
        if quality is not None or tokens not in (None, self.num_tokens):
            raise DataError(f"This model has no shorter rows: every picture is exactly {self.num_tokens} tokens.")
        return self.quantizer(self.read(self.prepare(images)))[1]

    @torch.no_grad()
    def decode(self, codes: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        """Return pictures [B, C, H, W], about in [-1, 1]; nothing is made up."""
        codes = self.check_codes(codes)
        if codes.shape[1] != self.num_tokens or bool((codes == PAD).any()):
            raise DataError(f"This model has no shorter rows: every picture is exactly {self.num_tokens} tokens.")
        return self.decoder(self.quantizer.codes_of(codes))

    def tokens_for(self, images: Tensor, quality: float = 0.05) -> Tensor:
        """Return the fixed number of tokens for every picture, int64 [B]."""
        return torch.full((len(self.prepare(images)),), self.num_tokens, device=self.device)
