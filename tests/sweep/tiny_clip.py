"""A random CLIP in a folder, and pictures with captions and with classes that its words can name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clip import CONFIG, tiny_clip
from tokred.clip_assets import save_clip
from tokred.data.scenes import COLORS, SHAPES


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "clip"
    save_clip(tiny_clip()[0], CONFIG, folder)
    return str(folder)


def write_captions(folder: Path, pictures: int = 8) -> str:
    lines = []
    for index in range(pictures):
        noise(index).save(folder / f"{index}.png")
        place = ("top", "bottom", "left", "right")[index % 4]
        things = (f"{list(COLORS)[index // 4]} {shape} at the {place}" for shape in SHAPES[:2])
        lines.append({"image": f"{index}.png", "captions": [f"a {thing}" for thing in things]})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "captions.jsonl")


def write_classes(folder: Path, each: int = 3) -> str:
    for number, shape in enumerate(SHAPES[:2]):
        (folder / shape).mkdir(parents=True)
        for index in range(each):
            noise(number * each + index).save(folder / shape / f"{index}.png")
    return str(folder)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8))
