"""``tokred methods``, ``tokred models``, ``tokred schedules``: what there is."""

from __future__ import annotations

import json
from dataclasses import fields

from rich.table import Table

from tokred.assets import list_models, read_config
from tokred.cli.console import output
from tokred.clip_assets import list_clip_models, read_clip_config
from tokred.folders import shipped_folder
from tokred.methods import Method
from tokred.methods import methods as registered
from tokred.methods.registry import Place
from tokred.multimodal_assets import list_multimodal_models
from tokred.schedule import Schedule

_PLACES: dict[Place, str] = {
    "encoder": "Inside an image or text encoder",
    "features": "Multimodal models: on the features of images, before the language model",
    "decoder": "Multimodal models: between the layers of the language model",
}
_SHARED_KNOBS = [field.name for field in fields(Method)]


def methods() -> None:
    """List the methods with their knobs, by the place where they act."""
    console = output()
    for place, title in _PLACES.items():
        table = Table(
            "method", "class", "paper", "needs", "knobs and their defaults", title=title, title_justify="left"
        )
        for name, method in registered(place).items():
            knobs = [f"{field.name}={field.default!r}" for field in fields(method) if field.name not in _SHARED_KNOBS]
            needs = "learned parts" if method.learned else "no training"
            table.add_row(name, method.__name__, method.paper or "baseline", needs, ", ".join(knobs))
        console.print(table, highlight=False)
    console.print(
        f"Every method inside an encoder also takes {' and '.join(_SHARED_KNOBS)} (one of them).", highlight=False
    )


def models() -> None:
    """List the models that ship with tokred."""
    table = Table("model", "architecture", "input", "blocks", "width", "classes", "data", "size")
    for name in list_models():
        folder = shipped_folder("models") / name
        config = read_config(folder / "config.json")
        args, weights = config.args, folder / "model.safetensors"
        side = args.get("img_size", 224)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        table.add_row(
            name,
            config.architecture,
            f"{args.get('in_chans', 3)} x {height} x {width}",
            str(args.get("depth", "")),
            str(args.get("embed_dim", "")),
            str(len(config.classes) or args.get("num_classes", "")),
            config.data or "",
            f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "no weights",
        )
    answering = Table("multimodal model", "architecture", "encoder layers", "decoder layers", "width", "size")
    for name in list_multimodal_models():
        folder = shipped_folder("models") / name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vision, text = config["vision_config"], config["text_config"]
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        layers = str(vision["num_hidden_layers"]), str(text["num_hidden_layers"])
        answering.add_row(name, config["model_type"], *layers, str(text["hidden_size"]), f"{size / 1e6:.1f} MB")
    finding = Table("CLIP model", "image", "image blocks", "text blocks", "width", "words", "size")
    for name in list_clip_models():
        folder = shipped_folder("models") / name
        clip, size = read_clip_config(folder / "config.json"), (folder / "model.safetensors").stat().st_size
        numbers = clip.vision.layers, clip.text.layers, clip.vision.width, len(clip.words)
        side = clip.vision.image_size
        finding.add_row(name, f"3 x {side} x {side}", *map(str, numbers), f"{size / 1e6:.1f} MB")
    console = output()
    for listed in (table, answering, finding):
        console.print(listed, highlight=False)
    console.print(
        "Any plain ViT of timm works by its name, and so does a folder with config.json and model.safetensors; "
        "multimodal models by their hub id, or a folder that save_pretrained wrote."
    )


def schedules() -> None:
    """List the schedules that ship with tokred: published and learned token counts."""
    table = Table("schedule", "made for", "blocks", "tracks", "tokens at the end", "source")
    for path in sorted(shipped_folder("configs/schedules").glob("*.yaml")):
        schedule = Schedule.load(path)
        last = schedule.tokens(schedule.num_tokens or 10**9)[-1]
        row = (path.stem, schedule.model, str(schedule.depth), ", ".join(schedule.tracks), str(last), schedule.source)
        table.add_row(*row)
    console = output()
    console.print(table, highlight=False)
    console.print(
        "Use one by its name, such as: tokred explain MODEL --method diffrate --schedule NAME", highlight=False
    )
