"""Learn to name what a picture shows."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokred.assets import ModelConfig, build_model, load_model, model_folder, read_config, save_model
from tokred.data import Batches, load_dataset, transform_for
from tokred.data.tensors import Normalize, TensorImages, augment
from tokred.errors import ConfigError, DataError
from tokred.evaluate.classification import top1
from tokred.methods import Method, create_method
from tokred.patching import patch
from tokred.train.config import Classification
from tokred.train.inside import Inside

Batch = tuple[Tensor, Tensor]


class PatchPool(nn.Module):
    """Stands in for timm's PatchDropout while training: squares of patch tokens become their means.

    Rotary positions go by the first patch of each square; they are relative, so the shift of all does not matter.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.prefix: int = model.num_prefix_tokens
        self.grid: tuple[int, int] = model.patch_embed.grid_size
        self.with_indices = hasattr(model, "rope")
        self.factor = 1

    def forward(self, x: Tensor) -> Any:
        """Return the tokens [B, N, D], for models with rotary positions with the patches whose places they take."""
        f, (H, W) = self.factor, self.grid
        if not self.training or f == 1:
            return (x, None) if self.with_indices else x
        B, _, D = x.shape
        squares = x[:, self.prefix :].view(B, H // f, f, W // f, f, D).mean((2, 4)).flatten(1, 2)
        x = torch.cat([x[:, : self.prefix], squares], 1)
        if not self.with_indices:
            return x
        first = torch.arange(H * W, device=x.device).view(H, W)[::f, ::f].flatten()
        return x, first.expand(B, -1)


def model_config(spec: Classification) -> ModelConfig:
    """The architecture that a recipe trains."""
    if spec.model is not None:
        return spec.model
    assert spec.start_from is not None
    return read_config(model_folder(spec.start_from) / "config.json")


def method_of(entry: Mapping[str, Any]) -> Method:
    """The method that a recipe puts into the model: ``{name: evit, keep: 0.5}``.

    Raises:
        ConfigError: no name, an unknown method or knob, or a value that it does not take.
    """
    knobs = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key != "name"}
    if "name" not in entry:
        raise ConfigError(f"method: {dict(entry)} has no 'name'. Write for example {{name: evit, keep: 0.5}}.")
    try:
        return create_method(str(entry["name"]), **knobs)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"method {entry['name']}: {error}") from error


class ClassificationTask:
    """Cross-entropy on pictures held in memory, shifted and mirrored at random.

    Stage settings:

    - ``patch_pool``: in training, every square of so many by so many patch tokens becomes its mean before the first
      block, which makes a step cheaper by about the square; evaluation sees all tokens.
    - ``crop_padding``, ``flip``: how pictures are shifted and mirrored, where not as in the rest of the recipe.
    - ``stem_only``: leave out the blocks; the mean of the embedded patches goes to the head. It warms up a
      convolutional stem at a tenth of the cost.
    """

    def __init__(self, spec: Classification, seed: int = 0):
        self.spec = spec
        torch.manual_seed(seed)
        self.config = model_config(spec)
        network = build_model(self.config) if spec.start_from is None else load_model(spec.start_from)
        self.pool = PatchPool(network)
        network.patch_drop = self.pool  # both architectures call it between position embedding and first block
        network.to(memory_format=torch.channels_last)  # convolutions train a quarter faster
        if not spec.fused_attention:
            for module in network.modules():
                if hasattr(module, "fused_attn"):
                    module.__dict__["fused_attn"] = False
        self.model = network
        if spec.method is not None:
            self.model = Inside(network, method_of(spec.method), parts_only=spec.parts_only)
            if spec.parts_only and not len(self.model.parts):
                raise ConfigError(f"parts_only: {spec.method['name']} has no learnable parts. Train the model with it.")
        data = load_dataset(spec.data, "train")
        if not isinstance(data, TensorImages):
            raise DataError(f"{spec.data}: training needs a data set held in memory, as fashion-mnist is.")
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        train, held = order[spec.holdout :], order[: spec.holdout]
        self.images, self.labels = data.images[train], data.labels[train]
        self.held = TensorImages(data.images[held], data.labels[held], data.classes)
        self.normalize = Normalize(self.config.mean, self.config.std)
        self.stem_only = False
        self.crop_padding, self.flip = spec.crop_padding, spec.flip

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return len(self.images)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Set what the stage changes; what it does not name goes back to the recipe."""
        known = ("patch_pool", "crop_padding", "flip", "stem_only")
        for name in settings:
            if name not in known:
                raise ConfigError(f"classification has no stage setting {name!r}. It has: {', '.join(known)}.")
        factor = int(settings.get("patch_pool", 1))
        if factor < 1 or any(side % factor for side in self.pool.grid):
            raise ConfigError(f"patch_pool: {factor} does not divide the grid of {self.pool.grid} patches.")
        self.pool.factor = factor
        self.crop_padding = int(settings.get("crop_padding", self.spec.crop_padding))
        self.flip = bool(settings.get("flip", self.spec.flip))
        self.stem_only = bool(settings.get("stem_only", False))

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch of augmented, normalised batches."""
        order = torch.randperm(len(self.images), generator=generator)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            pick = order[start : start + batch_size]
            images = augment(self.images[pick], generator, padding=self.crop_padding, flip=self.flip)
            yield self.normalize(images).contiguous(memory_format=torch.channels_last), self.labels[pick]

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy with smoothed labels."""
        images, labels = batch
        logits = self._logits(self.model, images).float()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.spec.label_smoothing)
        return loss + self.model.penalty() if isinstance(self.model, Inside) else loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the top-1 accuracy on the held-out training pictures."""
        right = 0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(self.held), 250):
                images = self.normalize(self.held.images[start : start + 250])
                right += int((self._logits(model, images).argmax(-1) == self.held.labels[start : start + 250]).sum())
        return {"held_out_top1": 100 * right / max(1, len(self.held))}

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the model in half precision and return the top-1 accuracy of that file on the test set.

        With a method inside, its learned parts stand in a file beside, and the accuracy is the one with the method.
        """
        inside = model if isinstance(model, Inside) else None
        save_model(model if inside is None else inside.network, self.config, folder)
        finished, record = load_model(folder), {}
        batches = Batches(load_dataset(self.spec.data, "test", transform_for(finished)), 250)
        if inside is not None and self.spec.method is not None:
            parts = inside.save_parts(folder)
            patch(finished, method_of(self.spec.method | ({} if parts is None else {"weights": str(parts)})))
            record = {"method": self.spec.method}
        accuracy = top1(finished, batches)
        record |= {"test_top1": accuracy.top1, "test_correct": accuracy.correct, "test_total": accuracy.total}
        (folder / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return {"test_top1": accuracy.top1}

    def _logits(self, model: Any, images: Tensor) -> Tensor:
        if not self.stem_only:
            return model(images)
        model = model.network if isinstance(model, Inside) else model
        pooled = model.patch_embed(images).mean(1)  # [B, D]
        return model.head(model.fc_norm(model.norm(pooled)))
