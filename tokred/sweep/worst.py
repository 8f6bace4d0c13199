"""The images that a point does worst on, with what the method did to them."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import nn

from tokred.methods import Method
from tokred.patching import patch
from tokred.sweep.predictions import Predictions
from tokred.sweep.subject import Subject

_GAP = 8  # pixels between two pictures


def worst_columns(
    count: int, subject: Subject, model: nn.Module, method: Method, reached: Predictions
) -> dict[str, Any]:
    """Pictures of at most ``count`` images whose class changed to a wrong one, the surest first.

    Args:
        count: how many.
        subject: what the point shares with others.
        model: a copy of its model; left unpatched.
        method: what the point measures.
        reached: what the patched model said.

    Returns:
        The columns ``worst``, a PNG with the pictures beside each other, and ``worst_captions``; empty where the class
        of no image became wrong.
    """
    changed = (reached.predicted != subject.classes) & ~reached.right
    order = torch.where(changed, reached.confidence, -1.0).argsort(descending=True, stable=True)
    positions = order[: min(count, int(changed.sum()))].tolist()
    if not positions:
        return {}
    images = torch.stack([subject.image(position) for position in positions]).to(subject.device, subject.dtype)
    with patch(model, method, trace=True, verify=False) as handle, torch.inference_mode():
        model(images)
        pictures = handle.trace.overlay(images)
    name = subject.class_name
    captions = [
        f"image {at}: {name(reached.labels[at])}, taken for {name(reached.predicted[at])} "
        f"({100 * reached.confidence[at]:.0f} %); unpatched: {name(subject.classes[at])}"
        for at in positions
    ]
    return {"worst": _png(pictures), "worst_captions": captions}


def _png(pictures: list[Image.Image]) -> bytes:
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    strip = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + _GAP
    sink = io.BytesIO()
    strip.save(sink, "PNG", optimize=True)
    return sink.getvalue()
