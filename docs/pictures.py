"""Draws docs/images/overlay.png and layers.png: what methods leave of some images of the sample. Run it as it is."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import tokred
from tokred.assets import load_model
from tokred.data import load_dataset, transform_for

FOLDER = Path(__file__).parent / "images"
SIDE, GAP = 168, 6

model = load_model("vit-fmnist")
data = load_dataset("fashion-mnist-sample")
transform = transform_for(model)


def traced(method: tokred.Method, images: Tensor) -> tokred.Trace:
    """What a forward with the method did to the images."""
    with tokred.patch(model, method, trace=True) as handle, torch.no_grad():
        model(images)
        return handle.trace


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put pictures into a grid."""
    step = SIDE + GAP
    paper = Image.new("RGB", (step * len(rows[0]) - GAP, step * len(rows) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            paper.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x * step, y * step))
    return paper


def overlay() -> Image.Image:
    """Six images, and what is left of them behind the last block."""
    images = torch.stack([transform(data[i][0]) for i in (0, 3, 8, 11, 14, 17)])
    methods = (tokred.ToMe(r=0), tokred.ToMe(budget="55%"), tokred.PiToMe(budget="55%"), tokred.TopK(budget="55%"))
    return sheet([traced(method, images).overlay(images) for method in methods])


def layers() -> Image.Image:
    """One image behind more and more blocks, a row a method."""
    image = transform(data[17][0]).unsqueeze(0)
    rows = []
    for method in (tokred.ToMe(budget="55%"), tokred.TopK(budget="55%")):
        trace = traced(method, image)
        rows.append([trace.overlay(image, layer=layer)[0] for layer in (0, 1, 3, 4, 6, 7)])
    return sheet(rows)


if __name__ == "__main__":
    for draw in (overlay, layers):
        draw().save(FOLDER / f"{draw.__name__}.png", optimize=True)
