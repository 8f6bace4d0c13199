"""Every plain ViT name of timm, built small with parameters that hide nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.models import list_models
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

MODULES = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "naflexvit",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
)
SMALL = {"depth": 3, "embed_dim": 96, "num_heads": 3, "num_classes": 10}
PLAIN_STEMS = ("PatchEmbed", "NaFlexEmbeds")
LARGEST_INPUT = 400
SMALLER_INPUT = 224

# names that cannot be shrunk like the others: what they need besides, by a part of the name
ALSO = {
    "sapiens2": {"num_kv_heads": 1},  # lists one number of key heads for each block of the full depth
    "vit_base_mci_224": {"embed_dim": 768},  # its convolutional stem ends in that width, without a projection
    "_r26_": {"img_size": 128},  # whole ResNets as stems, slow at their size
    "_r50_": {"img_size": 128},
    "_resnet": {"img_size": 128},
}


def names() -> list[str]:
    """All names of the plain ViT modules."""
    return [name for module in MODULES for name in list_models(module=module)]


def build(name: str, **changes: Any) -> nn.Module:
    """The model in evaluation mode, three blocks of width 96, with parameters from :func:`randomise`."""
    model = create(name, **changes).eval()
    randomise(model)
    return model


def create(name: str, **changes: Any) -> nn.Module:
    """The shrunk model as timm initialises it."""
    knobs = dict(SMALL)
    if max(timm.get_pretrained_cfg(name).input_size[1:]) > LARGEST_INPUT and "naflex" not in name:
        knobs["img_size"] = SMALLER_INPUT
    for part, more in ALSO.items():
        if part in name:
            knobs.update(more)
    return timm.create_model(name, **{**knobs, **changes})


def images(model: nn.Module, batch: int = 2, seed: int = 0) -> Tensor:
    """Random images of the size that the model was built for."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or (128, 160)  # NaFlexViT takes any
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill all parameters so that leaving one out shows: scales of order one, biases and tables away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_values(module, name, parameter, generator).to(parameter.dtype))


def _values(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if "gamma" in name or (name == "weight" and parameter.ndim == 1):
        return 0.5 + 0.5 * torch.rand(parameter.shape, generator=generator)  # LayerScale and norms
    if isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
        return noise / parameter[0].numel() ** 0.5
    if parameter.ndim <= 1:
        return 0.2 * noise
    return 0.5 * noise


def family(model: nn.Module) -> dict[str, Any]:
    """What a patch has to get right about a model; two models of one family differ in sizes only."""
    block: Any = next(iter(model.blocks))
    attn = next((m for name, m in block.named_modules() if name.endswith("attn")), block)
    stem: Any = getattr(model, "patch_embed", None) or model.embeds
    return {
        "model": type(model).__name__,
        "block": type(block).__name__,
        "attention": type(attn).__name__,
        "pool": model.global_pool,
        "prefix": model.num_prefix_tokens,
        "class token": getattr(getattr(model, "embeds", model), "cls_token", None) is not None,
        "rope": type(model.rope).__name__ if getattr(model, "rope", None) is not None else None,
        "bias": _bias(model, attn),
        "stem": type(getattr(stem, "backbone", stem)).__name__,
        "scale": any("gamma" in name or ".ls" in f".{name}" for name, _ in block.named_parameters()),
        "norm of keys": type(getattr(attn, "k_norm", None)).__name__,
        "fused projection": getattr(attn, "qkv", None) is not None,
        "key heads": getattr(attn, "num_kv_heads", None) not in (None, attn.num_heads),
    }


def _bias(model: nn.Module, attn: nn.Module) -> str | None:
    """Where a relative position bias comes from."""
    if getattr(model, "shared_rel_pos", None) is not None or getattr(model, "rel_pos_bias", None) is not None:
        return "shared"
    if getattr(attn, "relative_position_bias_table", None) is not None:
        return "table"
    own = getattr(attn, "rel_pos", None)
    return None if own is None else type(own).__name__


class _Uninitialised(TorchDispatchMode):
    """Skips all in-place operations: most of the time of building a model without memory goes into initialising it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func._schema.name.endswith("_") else func(*args, **(kwargs or {}))


def every_family() -> Iterator[tuple[str, dict[str, Any]]]:
    """All names with their families, read off models without memory (on the meta device)."""
    for name in names():
        with _Uninitialised():
            model = create(name, depth=1, device="meta")
        yield name, family(model)
