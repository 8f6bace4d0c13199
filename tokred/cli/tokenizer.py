"""``tokred encode`` and ``tokred decode``: a folder of pictures to codes and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokred.cli.console import errors, output, progress_bar
from tokred.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "flextok-shapes"


def encode(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures; folders inside it are read, too.")],
    codes: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    tokenizer: Annotated[str, typer.Option(help="Shipped tokenizer, folder or hub id.")] = DEFAULT,
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens a picture.")] = None,
    quality: Annotated[
        float | None, typer.Option(help="Mean absolute error, pixels in [0, 1]: fewer tokens where they do.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
) -> None:
    """Write pictures as codes: one row of ids a picture, and the names of the files.

    The middle square of each picture is taken and resized to what the tokenizer reads.
    """
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from tokred.data.image_folder import SUFFIXES
    from tokred.data.square import square
    from tokred.tokenizer_assets import load_tokenizer

    if not pictures.is_dir():
        raise DataError(f"{pictures} is no folder.")
    files = [path for path in sorted(pictures.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise DataError(f"{pictures}: no pictures in it. Looked for {', '.join(SUFFIXES)}.")
    model = load_tokenizer(tokenizer).to(device)
    if tokens is not None and not 1 <= tokens <= model.num_tokens:
        raise DataError(f"--tokens {tokens}: {tokenizer} writes 1 to {model.num_tokens}.")
    rows, names, skipped = [], [], []
    with progress_bar() as bar:
        task = bar.add_task(tokenizer, total=len(files))
        for start in range(0, len(files), batch_size):
            batch = []
            for path in files[start : start + batch_size]:
                try:
                    with Image.open(path) as file:
                        batch.append(square(file, model.side, model.channels))
                except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
                    skipped.append(f"{path}: {type(error).__name__}: {error}")
                    continue
                names.append(path.relative_to(pictures).as_posix())
            if batch:
                rows.append(model.encode(torch.stack(batch), tokens=tokens, quality=quality).cpu())
            bar.update(task, completed=min(len(files), start + batch_size))
    for reason in skipped:
        errors().print(f"not read: {reason}", highlight=False, soft_wrap=True, markup=False)
    if not rows:
        raise DataError(f"{pictures}: none of its {len(files)} pictures can be read.")
    found = torch.cat(rows)
    header = {"tokenizer": tokenizer, "files": json.dumps(names), "vocabulary": str(model.vocabulary)}
    codes.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": found}, codes, metadata=header)
    used = (found >= 0).sum(1).double().mean().item()
    output().print(
        f"{len(names)} pictures, {used:.1f} tokens each, {used * model.bits_per_token / 8:.1f} bytes each: {codes}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def decode(
    codes: Annotated[Path, typer.Argument(help="File that tokred encode wrote.")],
    pictures: Annotated[Path, typer.Argument(help="Folder to write pictures to, as PNG.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Where it is now, if not where it was when the codes were written.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Read only so many tokens a picture.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the flow.")] = 20,
    guidance: Annotated[float, typer.Option(help="1 for none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
) -> None:
    """Draw pictures from codes, under the names that they had."""
    import torch
    from PIL import Image

    from tokred.tokenizer_assets import load_tokenizer
    from tokred.tokenizers.base import to_bytes

    rows, names, written_by = _read(codes)
    model = load_tokenizer(tokenizer or written_by).to(device)
    if tokens is not None:
        if not 1 <= tokens <= rows.shape[1]:
            raise DataError(f"--tokens {tokens}: {codes} holds 1 to {rows.shape[1]} a picture.")
        rows = rows[:, :tokens]
    knobs = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if name in model.decode_knobs}
    if guidance != 1 and not knobs:
        raise ConfigError(f"--guidance: {type(model).__name__} draws at once and has none.")
    chance = torch.Generator().manual_seed(seed)
    with progress_bar() as bar:
        task = bar.add_task(tokenizer or written_by, total=len(rows))
        for start in range(0, len(rows), batch_size):
            drawn = (
                to_bytes(model.decode(rows[start : start + batch_size], generator=chance, **knobs))
                .permute(0, 2, 3, 1)
                .cpu()
                .numpy()
            )
            for array, name in zip(drawn, names[start : start + batch_size], strict=True):
                path = _inside(pictures, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array).save(path)
            bar.update(task, completed=min(len(rows), start + batch_size))
    output().print(f"{len(rows)} pictures: {pictures}", highlight=False, soft_wrap=True)


def _read(codes: Path) -> tuple[Tensor, list[str], str]:
    """The rows, the names of the pictures, and the tokenizer of a file."""
    from safetensors import SafetensorError, safe_open

    if not codes.is_file():
        raise DataError(f"{codes} does not exist.")
    try:
        with safe_open(codes, "pt") as file:
            header = file.metadata() or {}
            rows, names = file.get_tensor("codes"), json.loads(header["files"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{codes}: not a file that tokred encode wrote ({error}).") from error
    if rows.ndim != 2 or len(names) != len(rows):
        raise DataError(f"{codes}: {len(names)} names do not fit codes of shape {tuple(rows.shape)}.")
    return rows, names, header.get("tokenizer", DEFAULT)


def _inside(folder: Path, name: str) -> Path:
    """Where a picture goes; names that lead out of the folder are refused."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"The codes name the picture {name!r}, which lies outside of the folder.")
    return folder / path.with_name(f"{path.name}.png" if path.suffix.lower() != ".png" else path.name)
