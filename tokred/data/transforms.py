"""How a picture becomes what a model was trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tokred.data.tensors import Normalize, Transform


def transform_for(model: nn.Module | Mapping[str, Any]) -> Transform:
    """Return the evaluation transform of a model that carries a ``pretrained_cfg``, as timm's and tokred's do.

    It takes a PIL picture or a uint8 tensor [C, H, W]. Bytes that have the model's size already are only
    normalised; everything else goes through timm's resize and crop (for one channel: grey, then resize).
    """
    config = dict(getattr(model, "pretrained_cfg", None) or {}) if isinstance(model, nn.Module) else dict(model)
    return _Eval(config)


class _Eval:
    """A transform that can be sent to worker processes."""

    def __init__(self, config: Mapping[str, Any]):
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform

        self.input_size = tuple(config.get("input_size", (3, 224, 224)))
        data = resolve_data_config(pretrained_cfg=dict(config))
        self.normalize = Normalize(data["mean"], data["std"])
        self.pictures: Any = create_transform(**data) if self.input_size[0] == 3 else None

    def __call__(self, picture: Any) -> Tensor:
        if isinstance(picture, Tensor):
            if tuple(picture.shape) == self.input_size:
                return self.normalize(picture)
            array = picture.permute(1, 2, 0).numpy()
            picture = Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)
        if self.pictures is not None:
            return self.pictures(picture.convert("RGB"))
        height, width = self.input_size[1:]
        grey = picture.convert("L").resize((width, height), Image.Resampling.BICUBIC)
        return self.normalize(torch.from_numpy(np.array(grey))[None])
