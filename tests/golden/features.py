"""Views between encoder and language model for cases that store attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokred.feature_view import EncoderAttention, FeatureView
from tokred.layout import VisualLayout, unpadded

from .compare import attention_signals


def square(attention: Tensor, class_token: bool = True) -> EncoderAttention:
    """What has the attention [P, H, T, T]."""
    signals = attention_signals(attention)
    return EncoderAttention(signals["q"], signals["k"], 1.0, int(class_token), class_token)


def class_rows(rows: Tensor, keys: Tensor | None = None) -> EncoderAttention:
    """What has the attention [P, H, T] of the class token; ``keys`` [P, T, D] are attached without their queries."""
    tokens = rows.shape[-1]
    query = rows.clamp(min=torch.finfo(rows.dtype).tiny).log().unsqueeze(2)
    attention = EncoderAttention(query, torch.eye(tokens).expand(*rows.shape[:2], -1, -1), 1.0, 1, True)
    if keys is not None:
        attention.patch_keys = lambda: keys[:, 1:]  # type: ignore[method-assign]
    return attention


def class_logits(logits: Tensor) -> EncoderAttention:
    """What has the products [P, N] of the class query with the keys of the patches."""
    query = torch.cat([torch.zeros(logits.shape[0], 1), logits], dim=1).view(logits.shape[0], 1, 1, -1)
    return EncoderAttention(query, torch.eye(query.shape[-1]).expand(logits.shape[0], 1, -1, -1), 1.0, 1, True)


def view(
    layout: VisualLayout,
    attention: EncoderAttention | Callable[[int], EncoderAttention] | None = None,
    features: Tensor | None = None,
    image: int | None = None,
    **rest: Any,
) -> FeatureView:
    """A view with one attention for all layers, or one for each; ``image`` picks one of a batch of images."""
    return FeatureView(
        layout,
        torch.zeros(layout.num_tokens, 1) if features is None else features,
        attention=(lambda _layer: attention) if isinstance(attention, EncoderAttention) else attention,
        partitions=slice(None) if image is None else slice(image, image + 1),
        **rest,
    )


def tiled(side: int, mosaic: Sequence[int], image: Sequence[int]) -> tuple[VisualLayout, tuple[int, int, int, int]]:
    """The layout of a letterboxed image (height, width) with tiles of ``side`` patches, and its box in the mosaic."""
    rows, columns = mosaic
    box = unpadded((rows * side, columns * side), (image[0], image[1]))
    return VisualLayout.tiled((side, side), (rows, columns), box), box


def padded(rows: Sequence[Tensor], length: int, fill: float = -1) -> Tensor:
    """Rows of different lengths as one tensor [rows, length]."""
    result = torch.full((len(rows), length), fill, dtype=rows[0].dtype)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result
