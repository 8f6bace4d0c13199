"""``tokred overlay``: a picture of what a method leaves of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from tokred.assets import load_model
from tokred.cli.console import output
from tokred.cli.knobs import build_method
from tokred.data import load_dataset, transform_for
from tokred.errors import DataError
from tokred.patching import patch

_EXAMPLE = 18  # of the shipped sample: a bag


def overlay(
    image: Annotated[Path | None, typer.Argument(help="Left out: one of the pictures that ship with tokred.")] = None,
    model: Annotated[str, typer.Option(help="A shipped model, a timm name, or a folder.")] = "vit-fmnist",
    method: Annotated[str, typer.Option(help="See: tokred methods.")] = "tome",
    knob: Annotated[
        list[str] | None, typer.Option(help="name=value, such as r=13; may be repeated. Short: --r 13.")
    ] = None,
    layer: Annotated[int, typer.Option(help="Behind which block; -1 is the last.")] = -1,
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("overlay.png"),
) -> None:
    """Draw which patches of a picture a method merges (outlined, in their mean colour) and drops (dark)."""
    built = build_method(method, knob or [])
    network = load_model(model)
    x = transform_for(network)(_example() if image is None else _read(image))[None]
    with patch(network, built, trace=True) as handle, torch.inference_mode():
        network(x)
        trace = handle.trace
    if not -trace.shape.depth <= layer < trace.shape.depth:
        raise DataError(f"--layer {layer}: {model} has the blocks 0 to {trace.shape.depth - 1}; -1 is the last.")
    try:
        trace.overlay(x, layer)[0].save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: the picture cannot be written ({error}). Try --out overlay.png.") from error
    left = trace.tokens_per_layer[layer]
    output().print(f"{left} of {trace.state.num_initial} tokens are left: {out}", highlight=False, soft_wrap=True)


def _example() -> torch.Tensor:
    return load_dataset("fashion-mnist-sample")[_EXAMPLE][0]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({type(error).__name__}: {error}).") from error
