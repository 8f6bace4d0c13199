"""What a recipe would train, told without data, without weights and without a GPU."""

from typing import Any

import torch
from torch import nn

from tokred.assets import build_model
from tokred.clip_assets import build_clip
from tokred.train.classification import model_config
from tokred.train.config import Classification, Contrastive, FlexTokTraining, KARLTraining, PriorTraining, TrainSpec


def plan(spec: TrainSpec) -> dict[str, str]:
    """Return sizes of the model and of the training, by name; nothing is allocated for the weights.

    >>> from tokred.folders import shipped_folder
    >>> from tokred.train.config import load_spec
    >>> plan(load_spec(shipped_folder("configs/train") / "flextok_imagenet.yaml"))["encoder"]
    '85,382,406 numbers'
    """
    loop = spec.loop
    told = {"recipe": spec.name, "task": spec.task.kind}
    with torch.device("meta"):
        parts = _parts(spec.task)
    for name, part in parts.items():
        told[name] = f"{sum(value.numel() for value in part.state_dict().values()):,} numbers"
    if isinstance(spec.task, FlexTokTraining):
        told |= _flextok(spec.task)
    told["epochs"] = f"{sum(stage.epochs for stage in loop.stages):g} in batches of {loop.batch_size}"
    told["optimizer"] = (
        f"AdamW, {loop.learning_rate:g} to {loop.final_learning_rate:g}, bf16 {'on' if loop.bf16 else 'off'}"
    )
    return told


def _parts(task: Any) -> dict[str, nn.Module]:
    if isinstance(task, Classification):
        return {"model": build_model(model_config(task))}
    if isinstance(task, Contrastive):
        return {"model": build_clip(task.model)}
    if isinstance(task, FlexTokTraining):
        from tokred.tokenizers.flextok.decoder import Decoder
        from tokred.tokenizers.flextok.encoder import Encoder

        return {"encoder": Encoder(task.model), "decoder": Decoder(task.model)}
    if isinstance(task, KARLTraining):
        from tokred.tokenizers.karl import KARL

        return {"model": KARL(task.model)}
    if isinstance(task, PriorTraining):
        return {}  # its vocabulary is that of a tokenizer, which may not be trained yet
    return {}


def _flextok(task: FlexTokTraining) -> dict[str, str]:
    """Tokens, ids, and multiply-adds of the linear layers and of attention for one picture."""
    model = task.model
    patches = model.grid**2
    told = {"sequence": f"{patches} patches and {model.registers} registers"}
    for name, trunk in (("encoder_macs", model.encoder), ("decoder_macs", model.decoder)):
        tokens, hidden = patches + model.registers, trunk.hidden or 8 * trunk.width // 3
        macs = trunk.depth * tokens * (4 * trunk.width**2 + 3 * trunk.width * hidden + 2 * tokens * trunk.width)
        told[name] = f"{macs / 1e9:.2f} G a picture"
    ids = 1
    for count in model.levels:
        ids *= count
    told["ids"] = f"{ids:,}"
    if model.autoencoder is not None:
        side = model.side * model.autoencoder.downsampling
        told["autoencoder"] = f"frozen, {side} x {side} pixels to {model.channels} x {model.side} x {model.side}"
    return told
