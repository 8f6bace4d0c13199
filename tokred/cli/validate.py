"""``tokred validate``: top-1 and top-5 with the arguments of timm's ``validate.py``, with a method or without."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import typer

from tokred.cli.console import errors
from tokred.cli.timm_arguments import DTYPES, Parser, compiled, give, method_of, millions, precision, prepare
from tokred.data import Batches, ImageFolder, dataset_names, load_dataset, transform_for
from tokred.errors import ConfigError, DataError
from tokred.patching import patch
from tokred.sweep.point import Settings
from tokred.sweep.subject import Subject

_VALIDATION = ("validation", "val")  # what folders call it
_FOLDERS, _SHARDS, _HUB = ("", "folder", "imagefolder"), "wds", "hfds"  # kinds of --dataset


def validate(context: typer.Context) -> None:
    """Top-1 and top-5 of a model with a method in it; takes the arguments of timm's validate.py (--help lists them)."""
    arguments = _parser().read(context.args)
    give(arguments, run(arguments))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validate; return what timm's script would, and what the method did."""
    model, data, method, device = prepare(arguments)
    images = _images(arguments, transform_for(data))
    batches = Batches(images, arguments.batch_size, workers=arguments.workers)
    if method is not None:
        patch(model.to(device), method)
    settings = Settings(
        split="", images=None, batch_size=arguments.batch_size, rounds=0, threads=0, device=str(device),
        dtype=arguments.model_dtype or "float32", seed=0,
    )  # fmt: skip
    subject = Subject(model, batches, settings)
    if subject.note:
        raise DataError(f"{arguments.model}: {subject.note}. Give --num-classes and a --checkpoint, or a --class-map.")
    with precision(arguments, device):
        found = subject.predict(compiled(arguments, subject.model), _log(len(batches), arguments.log_freq))
    results: dict[str, Any] = {
        "model": arguments.model,
        "top1": round(found.top1, 4),
        "top1_err": round(100 - found.top1, 4),
        "top5": round(found.top5, 4),
        "top5_err": round(100 - found.top5, 4),
        "param_count": millions(model),
        "img_size": data["input_size"][-1],
        "crop_pct": data["crop_pct"],
        "interpolation": data["interpolation"],
        **method_of(arguments),
    }
    if found.skipped:
        count, first = len(found.skipped), found.skipped[0]
        errors().print(f"{count} images could not be read and were left out; the first: {first}", markup=False)
        results["skipped"] = count
    return results


def _parser() -> Parser:
    parser = Parser("validate", "Top-1 and top-5 of a model, with a method or without, as timm's validate.py.")
    add = parser.add_argument
    add("data", nargs="?", metavar="DIR", help="a folder, or whatever tokred sweep takes as data")
    add("--data-dir", metavar="DIR", help="the same")
    add("--dataset", default="", help="imagefolder, wds, hfds/OWNER/NAME, or a data set that ships")
    add("--split", help="left out: validation, or what the data have instead")
    add("--class-map", type=Path, metavar="FILE", help="folders of classes in the order of the model, a line for each")
    add("--workers", "-j", type=int, default=4)
    add("--crop-pct", type=float)
    add("--crop-mode", choices=("squash", "border", "center"))
    add("--mean", type=float, nargs="+")
    add("--std", type=float, nargs="+")
    add("--interpolation")
    add("--log-freq", type=int, default=10, help="batches between two lines of progress")
    add("--model-dtype", choices=DTYPES)
    add("--pin-mem", action="store_true", help="taken, and of no effect")
    add("--no-prefetcher", action="store_true", help="taken, and of no effect")
    return parser


def _images(arguments: argparse.Namespace, transform: Any) -> Any:
    kind, _, rest = arguments.dataset.partition("/")
    root = arguments.data_dir or arguments.data
    if kind.lower() == _HUB:
        name = f"hf:{rest}"
    elif kind.lower() in (*_FOLDERS, _SHARDS):
        name = root
    elif arguments.dataset in dataset_names():
        name = arguments.dataset
    else:
        raise ConfigError(
            f"--dataset {arguments.dataset}: there are imagefolder, wds, hfds/OWNER/NAME, {', '.join(dataset_names())}."
        )
    if not name:
        raise ConfigError("validate: name the data, such as: tokred validate /path/to/imagenet --model ...")
    split = arguments.split or ("test" if name in dataset_names() else _VALIDATION[0])
    if split in _VALIDATION:
        split = next((own for own in _VALIDATION if (Path(name) / own).is_dir()), split)
    if arguments.class_map is None:
        return load_dataset(name, split, transform)
    try:
        classes = arguments.class_map.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class-map {arguments.class_map}: cannot be read ({error}).") from error
    return ImageFolder(Path(name), transform, split=split, classes=classes)


def _log(batches: int, every: int) -> Any:
    def report(share: float) -> None:
        done = round(share * batches)
        if every > 0 and done % every == 0:
            errors().print(f"batch {done} of {batches}", highlight=False)

    return report
