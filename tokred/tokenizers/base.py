"""What every image tokenizer offers: pictures to rows of ids and back, at any length that it knows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokred.errors import DataError

PAD = -1  # stands where a row of codes has no token


class Tokenizer(nn.Module, ABC):
    """Writes pictures as rows of ids and draws pictures from them.

    Pictures are bytes or floats in [-1, 1], [B, C, H, W]. Codes are int64 [B, K]; -1 stands where there is no token.

    Attributes:
        config: what ``config.json`` says.
        num_tokens: K, the most tokens for one picture.
        vocabulary: how many ids there are.
        channels: of the pictures.
        side: their height and width.
        decode_knobs: what :meth:`decode` can be told besides the generator.
    """

    spec: ClassVar[type[BaseModel]]
    decode_knobs: ClassVar[frozenset[str]] = frozenset()

    config: Any
    num_tokens: int
    vocabulary: int
    channels: int
    side: int

    @property
    def bits_per_token(self) -> float:
        """How much one id can say."""
        return math.log2(self.vocabulary)

    @abstractmethod
    def encode(self, images: Tensor, *, tokens: int | None = None, quality: float | None = None) -> Tensor:
        """Return the codes int64 [B, K] of pictures, in the order in which they matter where the model has one.

        Args:
            images: [B, C, H, W], bytes or floats in [-1, 1].
            tokens: at most so many a picture.
            quality: the fewest tokens for this mean absolute error, pixels in [0, 1]; -1 stands where none is needed.

        Raises:
            DataError: pictures or a number of tokens that the model does not know.
        """

    @abstractmethod
    def decode(self, codes: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        """Return pictures [B, C, H, W], about in [-1, 1].

        Args:
            codes: [B, k], or rows of different lengths, or -1 where there is no token.
            generator: of what is made up where the codes leave something open; some tokenizers make up nothing.
        """

    def estimate(self, codes: Tensor | Sequence[Tensor]) -> Tensor:
        """Return pictures [B, C, H, W] as near to the originals as the codes say, without anything made up."""
        return self.decode(codes)

    @abstractmethod
    def tokens_for(self, images: Tensor, quality: float) -> Tensor:
        """Return how many tokens int64 [B] each picture needs for a mean absolute error, pixels in [0, 1]."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def prepare(self, images: Tensor) -> Tensor:
        """Return pictures as the model takes them: floats in [-1, 1] on its device.

        Raises:
            DataError: no batch of pictures of the model's size and channels.
        """
        wanted = f"Expected [B, {self.channels}, {self.side}, {self.side}], bytes or floats in [-1, 1]."
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise DataError(f"These are no pictures: {found}. {wanted}")
        if images.shape[1] != self.channels:
            raise DataError(f"Pictures with {images.shape[1]} channels; the model has {self.channels}. {wanted}")
        self.check_size(*images.shape[-2:])
        if images.dtype == torch.uint8:
            images = images.to(self.device).float() / 127.5 - 1
        elif not images.is_floating_point():
            raise DataError(f"Pictures of {images.dtype}. {wanted}")
        return images.to(self.device, self.dtype)

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of a size that the model does not know."""
        if (height, width) != (self.side, self.side):
            raise DataError(f"Pictures of {height} x {width} pixels; the model reads {self.side} x {self.side} only.")

    def check_tokens(self, tokens: int | None) -> None:
        """Refuse a number of tokens that the model does not write."""
        if tokens is not None and not 1 <= tokens <= self.num_tokens:
            raise DataError(f"tokens: {tokens} a picture; the model writes 1 to {self.num_tokens}.")

    def check_codes(self, codes: Tensor | Sequence[Tensor]) -> Tensor:
        """Return codes as int64 [B, k] on the model's device; rows of different lengths are padded with -1.

        Raises:
            DataError: no integers, ids out of range, no token at all, or more than the model has.
        """
        if not isinstance(codes, Tensor):
            codes = pad_sequence([row.flatten() for row in codes], batch_first=True, padding_value=PAD)
        if codes.ndim != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise DataError(f"Codes are int64 [B, k]; these are {codes.dtype} of shape {tuple(codes.shape)}.")
        if not 1 <= codes.shape[1] <= self.num_tokens:
            raise DataError(f"{codes.shape[1]} tokens a picture; the model takes 1 to {self.num_tokens}.")
        codes = codes.to(self.device, torch.int64)
        if codes.numel() and (int(codes.min()) < PAD or int(codes.max()) >= self.vocabulary):
            raise DataError(
                f"Codes from {int(codes.min())} to {int(codes.max())}; the model's ids are 0 to {self.vocabulary - 1}, "
                f"and {PAD} where there is no token."
            )
        return codes


def lengths(tokens: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and ``tokens``.

    >>> lengths(12)
    (1, 2, 4, 8, 12)
    """
    return tuple(sorted({2**j for j in range(tokens.bit_length()) if 2**j <= tokens} | {tokens}))


def shorten(codes: Tensor, counts: Tensor) -> Tensor:
    """Return codes [B, K] with -1 behind the first ``counts`` [B] of every row.

    >>> shorten(torch.tensor([[5, 6, 7], [1, 2, 3]]), torch.tensor([1, 2]))
    tensor([[ 5, -1, -1],
            [ 1,  2, -1]])
    """
    return codes.masked_fill(torch.arange(codes.shape[1], device=codes.device) >= counts.to(codes.device)[:, None], PAD)


def to_bytes(images: Tensor) -> Tensor:
    """Return pictures in [-1, 1] as bytes."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def pixel_error(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean absolute error [B] between pictures in [-1, 1], measured with pixels in [0, 1]."""
    return (images.float() - others.float()).abs().flatten(1).mean(1) / 2
