"""FlexTok: a picture as an ordered row of ids, of which any first part draws a picture."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokred.errors import ConfigError, DataError
from tokred.tokenizers.base import PAD, Tokenizer, lengths, pixel_error, shorten
from tokred.tokenizers.flextok.config import FlexTokConfig
from tokred.tokenizers.flextok.decoder import Decoder
from tokred.tokenizers.flextok.encoder import Encoder
from tokred.tokenizers.flextok.flow import follow
from tokred.tokenizers.flextok.guidance import Projected, Scale
from tokred.tokenizers.flextok.quantize import FSQ
from tokred.tokenizers.flextok.vae import DiffusersVAE
from tokred.tokenizers.registry import register


@register("flextok")
class FlexTok(Tokenizer):
    """Registers behind the patches, finite scalar quantisation, nested dropout, and a rectified flow that draws.

    Bachmann et al., arXiv 2502.13967, written from the paper's mathematics. Batches are ordinary tensors. Heads of
    our own models may predict the picture instead of the velocity; it is turned into one.
    """

    spec = FlexTokConfig
    decode_knobs = frozenset({"steps", "guidance", "projected", "noise", "size"})

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        if config.side % config.patch:
            raise ConfigError(f"patch: {config.patch} does not divide the side of {config.side}.")
        self.config = config
        self.vae = DiffusersVAE(config.autoencoder) if config.autoencoder is not None else None
        self.encoder, self.decoder, self.fsq = Encoder(config), Decoder(config), FSQ(config.levels)
        self.num_tokens, self.vocabulary = config.registers, self.fsq.size
        self.channels = config.channels if self.vae is None else 3
        self.downsampling = 1 if config.autoencoder is None else config.autoencoder.downsampling
        self.side = config.side * self.downsampling

    @property
    def has_null(self) -> bool:
        """Whether it was trained without tokens, too, which guidance needs."""
        return self.config.null is not None and self.config.null_probability > 0

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of another size; of models that take any size, those that have no whole patches."""
        if not self.config.any_size:
            return super().check_size(height, width)
        step = self.config.patch * self.downsampling
        if height % step or width % step:
            raise DataError(f"Pictures of {height} x {width} pixels cannot be cut into patches of {step} x {step}.")
        if self.config.encoder.scaling == "absolute" and max(height, width) > self.side:
            raise DataError(f"Pictures of {height} x {width} pixels; the model has positions for {self.side} only.")
        return None

    @torch.no_grad()
    def encode(self, images: Tensor, *, tokens: int | None = None, quality: float | None = None) -> Tensor:
        """Return the codes int64 [B, K] of pictures, coarse to fine.

        Args:
            images: [B, C, H, W], bytes or floats in [-1, 1].
            tokens: only the first so many; the same ids at less cost.
            quality: as many of them as :meth:`tokens_for` says, -1 behind them.
        """
        self.check_tokens(tokens)
        images = self.prepare(images)
        codes = self.fsq(self.encoder(self.to_latents(images), tokens))[1]
        return codes if quality is None else shorten(codes, self._needed(images, codes, quality))

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor | Sequence[Tensor],
        *,
        steps: int = 20,
        guidance: Scale = 1.0,
        projected: bool | Projected = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return pictures [B, C, H, W], about in [-1, 1].

        Args:
            codes: the first tokens of every picture, [B, k]; or rows of different lengths, or -1 behind the last.
            steps: Euler steps of the flow.
            guidance: strength, or a function of the time; 1 for none.
            projected: projected guidance, with the paper's numbers or your own, instead of plain.
            generator: of the noise, drawn picture after picture.
            noise: [B, C, h, w] of the latents, instead.
            size: height and width of the pictures, where the model takes any.

        Raises:
            DataError: codes or sizes that the model does not have.
            ConfigError: guidance, and the model was not trained without tokens.
        """
        registers = self.read(codes)
        if guidance != 1 and not self.has_null:
            raise ConfigError("Guidance needs a model that was trained without tokens, too; this one was not.")
        if noise is None:
            noise = self.draw_noise(len(registers), generator, size)
        null = self.decoder.unconditional(len(registers)) if self.has_null else None
        latents = follow(
            lambda x, t: self.decoder.velocity(x.to(self.dtype), t, registers).float(),
            noise.to(self.device, torch.float32),
            steps,
            unconditional=None
            if null is None
            else lambda x, t: self.decoder.velocity(x.to(self.dtype), t, null).float(),
            guidance=guidance,
            projected=Projected() if projected is True else projected or None,
        )
        return self.to_images(latents)

    @torch.no_grad()
    def estimate(
        self,
        codes: Tensor | Sequence[Tensor],
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return what the decoder expects in one look at pure noise: the mean of the pictures that the tokens allow.

        It is blurred where they leave something open, but closer to the original than any one drawing.
        """
        registers = self.read(codes)
        if noise is None:
            noise = self.draw_noise(len(registers), generator or torch.Generator().manual_seed(0), size)
        noise = noise.to(self.device, self.dtype)
        return self.to_images(self.decoder.estimate(noise, torch.ones(1, device=self.device), registers))

    @torch.no_grad()
    def tokens_for(self, images: Tensor, quality: float) -> Tensor:
        """Return the fewest tokens int64 [B], of 1, 2, 4, ... and K, whose estimate has at most this error.

        Where not even all tokens do, K. The error is the mean absolute one.

        Args:
            images: [B, C, H, W].
            quality: the error, with pixels in [0, 1].
        """
        images = self.prepare(images)
        return self._needed(images, self.encode(images), quality)

    def _needed(self, images: Tensor, codes: Tensor, quality: float) -> Tensor:
        counts = lengths(codes.shape[1])
        needed = torch.full((len(images),), counts[-1], device=self.device)
        for count in reversed(counts[:-1]):
            drawn = self.estimate(codes[:, :count], size=(images.shape[-2], images.shape[-1]))
            needed = torch.where(pixel_error(drawn, images) <= quality, count, needed)
        return needed

    def read(self, codes: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the registers [B, K, D] that the decoder reads for codes [B, k].

        Raises:
            DataError: a row without tokens, or with one behind the first -1.
        """
        codes = self.check_codes(codes)
        there = codes != PAD
        keep = there.sum(1)
        if codes.numel() and (int(keep.min()) < 1 or not bool((there[:, 1:] <= there[:, :-1]).all())):
            raise DataError(f"Every row of codes starts with its tokens and has {PAD} only behind them.")
        values = self.fsq.codes_of(codes.clamp(min=0)).to(self.dtype)
        return self.decoder.condition(values, keep)

    def draw_noise(
        self, batch: int, generator: torch.Generator | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Return noise [B, C, h, w] in the shape of the latents, drawn picture after picture."""
        if size is not None:
            self.check_size(*size)
        height, width = (n // self.downsampling for n in size or (self.side, self.side))
        shape = (1, self.config.channels, height, width)
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.cat([torch.randn(shape, generator=generator, device=device) for _ in range(batch)])

    def to_latents(self, images: Tensor) -> Tensor:
        """Return what the encoder reads: the pictures, or their latents."""
        return images if self.vae is None else self.vae.encode(images)

    def to_images(self, latents: Tensor) -> Tensor:
        """Return the pictures [B, C, H, W] of latents."""
        return latents if self.vae is None else self.vae.decode(latents)
