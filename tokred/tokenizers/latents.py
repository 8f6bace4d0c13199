"""What KARL and TiTok share: learned latents that read a picture, and patches that are drawn from them at once."""

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tokred.tokenizers.flextok.blocks import Block, initialise, norm
from tokred.tokenizers.flextok.config import Trunk
from tokred.tokenizers.flextok.patches import patchify, unpatchify
from tokred.tokenizers.flextok.positions import Positions
from tokred.tokenizers.flextok.quantize import FSQ
from tokred.tokenizers.vector_quantize import VectorQuantizer


class LatentConfig(BaseModel):
    """Sizes of a tokenizer of learned latents. Codes are of a codebook, or, where ``levels`` are given, rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(default=3, gt=0)
    side: int = Field(gt=0)
    patch: int = Field(gt=0)
    tokens: int = Field(gt=0)
    codebook: int | None = Field(default=None, gt=1)
    code_dim: int = Field(default=12, gt=0)
    levels: tuple[int, ...] | None = None
    encoder: Trunk
    decoder: Trunk
    data: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_codes(self) -> "LatentConfig":
        if (self.codebook is None) == (self.levels is None):
            raise ValueError("give either codebook or levels")
        if self.side % self.patch:
            raise ValueError(f"patch {self.patch} does not divide side {self.side}")
        return self


class Bottleneck(nn.Module):
    """The codebook, or the rounding, with one face."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        if config.levels is not None:
            self.dim = len(config.levels)
            self.inner: FSQ | VectorQuantizer = FSQ(config.levels)
        else:
            self.dim = config.code_dim
            self.inner = VectorQuantizer(config.codebook or 0, config.code_dim)
        self.size = self.inner.size

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes [..., d], ids [...] and the loss of the codebook, which rounding does not have."""
        if isinstance(self.inner, VectorQuantizer):
            return self.inner(z)
        codes, ids = self.inner(z)
        return codes, ids, codes.new_zeros(())

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the codes [..., d] of ids [...]."""
        return self.inner.codes_of(ids)


class LatentEncoder(nn.Module):
    """[extra tokens | patches | learned latents] with attention among all; the latents are what comes out."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        trunk, grid = config.encoder, config.side // config.patch
        self.patch = config.patch
        self.patch_embed = nn.Linear(config.patch**2 * config.channels, trunk.width)
        self.positions = Positions(trunk.width, (grid, grid), trunk.positions)
        self.latents = nn.Parameter(torch.empty(config.tokens, trunk.width))
        self.blocks = nn.ModuleList(Block(trunk.width, trunk.head_width, trunk.hidden) for _ in range(trunk.depth))
        initialise(self)
        nn.init.trunc_normal_(self.latents, std=0.02)
        with torch.no_grad():  # each begins by looking at another place, the first ones far apart
            self.latents += self.positions.spread(config.tokens)

    def forward(self, images: Tensor, extra: Tensor, tokens: int | None = None) -> Tensor:
        """Return the first ``tokens`` latents [B, T, D], normalised, for images and extra tokens [B, E, D]."""
        x = self.patch_embed(patchify(images, self.patch))
        side = images.shape[-1] // self.patch
        x = x + self.positions(side, side).to(x.dtype)
        latents = self.latents[:tokens].to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([extra.to(x.dtype), x, latents], 1)
        for block in self.blocks:
            x = block(x)
        return norm(x[:, -latents.shape[1] :])


class LatentDecoder(nn.Module):
    """[mask tokens with positions | codes with theirs] with attention among all; the mask tokens become patches."""

    def __init__(self, config: LatentConfig, code_dim: int):
        super().__init__()
        trunk, self.grid = config.decoder, config.side // config.patch
        self.patch = config.patch
        self.mask_token = nn.Parameter(torch.empty(trunk.width))
        self.positions = Positions(trunk.width, (self.grid, self.grid), trunk.positions)
        self.from_codes = nn.Linear(code_dim, trunk.width)
        self.places = nn.Parameter(torch.empty(config.tokens, trunk.width))
        self.blocks = nn.ModuleList(Block(trunk.width, trunk.head_width, trunk.hidden) for _ in range(trunk.depth))
        self.hidden = nn.Linear(trunk.width, trunk.width)
        self.head = nn.Linear(trunk.width, config.patch**2 * config.channels)
        initialise(self)
        for table in (self.mask_token, self.places):
            nn.init.trunc_normal_(table, std=0.02)
        with torch.no_grad():  # and patches find the latent that looked at their place
            self.places += self.positions.spread(config.tokens)

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] of codes [B, T, d]; ``mask`` says where attention is allowed."""
        latents = self.from_codes(codes.to(self.from_codes.weight.dtype))
        latents = latents + self.places[: codes.shape[1]].to(latents.dtype)
        patches = self.mask_token + self.positions(self.grid, self.grid)
        x = torch.cat([patches.to(latents.dtype).expand(len(codes), -1, -1), latents], 1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.head(torch.tanh(self.hidden(norm(x[:, : self.grid**2]))))
        return unpatchify(x, self.patch, self.grid, self.grid)
