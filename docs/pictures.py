"""Draws docs/images/overlay.png: what methods leave of some images of the sample. Run it as it is."""

from pathlib import Path

import torch
from PIL import Image

import tokred
from tokred.assets import load_model
from tokred.data import load_dataset, transform_for

IMAGES = (0, 3, 8, 11, 14, 17)
METHODS = (tokred.ToMe(budget="55%"), tokred.PiToMe(budget="55%"), tokred.TopK(budget="55%"))
SIDE, GAP = 168, 6

model = load_model("vit-fmnist")
data = load_dataset("fashion-mnist-sample")
transform = transform_for(model)
images = torch.stack([transform(data[i][0]) for i in IMAGES])

rows = []
for method in METHODS:
    with tokred.patch(model, method, trace=True) as handle, torch.no_grad():
        model(images)
        rows.append(handle.trace.overlay(images))
with tokred.patch(model, tokred.ToMe(r=0), trace=True) as handle, torch.no_grad():
    model(images)
    rows.insert(0, handle.trace.overlay(images))

step = SIDE + GAP
sheet = Image.new("RGB", (step * len(IMAGES) - GAP, step * len(rows) - GAP), "white")
for y, row in enumerate(rows):
    for x, picture in enumerate(row):
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x * step, y * step))
sheet.save(Path(__file__).parent / "images" / "overlay.png", optimize=True)
