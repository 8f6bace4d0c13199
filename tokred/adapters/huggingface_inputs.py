"""What transformers' encoders take: the grid of their patches, and one random picture or clip, read off a config."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Random = Callable[..., Tensor]
Inputs = Callable[[Any, Random], dict[str, Any]]

PICTURES = ("pixel_values", "pixel_values_videos", "flattened_patches", "patch_embeds")
"""Arguments that bring pictures, or patches cut out of them."""
GRIDS = ("grid_thw", "image_grid_thw")
"""Arguments that say how many patches a picture has, of several in one sequence: [B, 3] frames, rows, columns."""
BESIDE = ("pixel_attention_mask", "spatial_shapes", "pixel_position_ids", "merge_sizes", *GRIDS)
"""What a forward may need beside pictures."""


def takes_pictures(module: nn.Module) -> bool:
    """Whether a model can be run on pictures, and what some need beside them, without words or masks."""
    arguments = _arguments(module)
    needed = [a.name for a in arguments if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
    names = [a.name for a in arguments]
    words = any("input_ids" in name for name in names)
    return bool(_pictures_of(names)) and not words and all(n in _pictures_of(names) | {*BESIDE} for n in needed)


def same_pictures(module: nn.Module, encoder: nn.Module) -> bool:
    """Whether a model takes its pictures in the way that the encoder inside does."""
    return bool(_pictures_of(a.name for a in _arguments(module)) & _pictures_of(a.name for a in _arguments(encoder)))


def _pictures_of(names: Iterable[str]) -> set[str]:
    """Which arguments bring pictures; beside a grid, hidden states are patches."""
    given = set(names)
    return given & {*PICTURES, *(("hidden_states",) if given & {*GRIDS} else ())}


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(type(module).forward).parameters.values())[1:]


def patch_of(config: Any) -> tuple[int, ...]:
    """Rows and columns of pixels in a patch; of a clip, frames before them."""
    tube = getattr(config, "tubelet_size", None)
    if tube is None:
        return _pair(config.patch_size)
    return (tube, *_pair(config.patch_size)) if isinstance(tube, int) else tuple(tube)


def grid_of(config: Any) -> tuple[int, ...]:
    """Rows and columns of patches; of a clip, layers before them."""
    patch, size = patch_of(config), _pair(getattr(config, "image_size", None) or config.crop_size)
    if len(patch) == 3:
        size = (getattr(config, "num_frames", None) or config.frames_per_clip, *size)
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def grid_of_frame(config: Any) -> tuple[int, ...]:
    """Rows and columns of patches in one frame of a clip."""
    return grid_of(config)[1:]


def grid_of_count(config: Any) -> tuple[int, ...]:
    """The square that so many patches make (SigLIP 2)."""
    return int(config.num_patches**0.5), int(config.num_patches**0.5)


def grid_of_pooled(config: Any) -> tuple[int, ...]:
    """The square that becomes 256 tokens for the language model, of 70 to 1120 (Gemma 4)."""
    return 16 * config.pooling_kernel_size, 16 * config.pooling_kernel_size


def row_of_patches(config: Any) -> tuple[int, ...]:
    """The number of patches alone: they form no grid (Pix2Struct)."""
    return (config.seq_len,)


def grid_of_any(_config: Any) -> tuple[int, ...]:
    """The grid of a picture of middling size, for an encoder that takes all sizes."""
    return 32, 32


def pictures(config: Any, random: Random) -> dict[str, Any]:
    """One picture or clip."""
    size = [side * p for side, p in zip(grid_of(config), patch_of(config), strict=True)]
    noise = {"noise": random(1, math.prod(grid_of(config)))} if hasattr(config, "mask_ratio") else {}
    return {"pixel_values": random(1, *size[:-2], getattr(config, "num_channels", 3), *size[-2:]), **noise}


def clips(config: Any, random: Random) -> dict[str, Any]:
    """One clip for V-JEPA 2, without the predictor behind its encoder."""
    frames, *size = [side * p for side, p in zip(grid_of(config), patch_of(config), strict=True)]
    return {"pixel_values_videos": random(1, frames, config.in_chans, *size), "skip_predictor": True}


def frames(config: Any, random: Random) -> dict[str, Any]:
    """A clip of one frame, for a model that encodes frames one by one."""
    return {"pixel_values_videos": pictures(config, random)["pixel_values"][:, None]}


def spread_frame(config: Any, random: Random) -> dict[str, Any]:
    """A clip of one frame, for a model that wants to know that there are fewer than it was made for (VideoPrism)."""
    size = [side * p for side, p in zip(grid_of(config), patch_of(config), strict=True)][1:]
    return {"pixel_values_videos": random(1, 1, config.num_channels, *size), "interpolate_pos_encoding": True}


def feature_map(config: Any, random: Random) -> dict[str, Any]:
    """A feature map in the place of embedded patches."""
    return {"patch_embeds": random(1, config.hidden_size, *grid_of(config))}


def padded_patches(config: Any, random: Random) -> dict[str, Any]:
    """Patches of one picture, with its shape and the mask of its padding."""
    grid = grid_of_count(config)
    pixels = random(1, math.prod(grid), config.num_channels * config.patch_size**2)
    mask = torch.ones(1, math.prod(grid), dtype=torch.int64, device=pixels.device)
    shapes = torch.tensor([grid], device=pixels.device)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def packed_patches(config: Any, random: Random) -> dict[str, Any]:
    """Patches of one picture, each in a row, beside the grid that they form."""
    frames = getattr(config, "temporal_patch_size", 1)
    pixels = random(math.prod(grid_of_any(config)), _channels(config) * frames * config.patch_size**2)
    merging = torch.ones(1, dtype=torch.int64, device=pixels.device)
    return {"hidden_states": pixels, "pixel_values": pixels, "merge_sizes": merging, **_shape(config, pixels)}


def packed_pixels(config: Any, random: Random) -> dict[str, Any]:
    """The same, each of channels, rows and columns (Kimi)."""
    pixels = random(math.prod(grid_of_any(config)), _channels(config), *_pair(config.patch_size))
    return {"pixel_values": pixels, **_shape(config, pixels)}


def packed_row_of_pixels(config: Any, random: Random) -> dict[str, Any]:
    """The same as a batch of one (PaddleOCR)."""
    given = packed_pixels(config, random)
    return {**given, "pixel_values": given["pixel_values"][None]}


def packed_squares(config: Any, random: Random) -> dict[str, Any]:
    """Squares of several patches, and the grid of the squares (Inkling)."""
    merged, patch = config.spatial_merge_size, config.patch_size
    pixels = random(math.prod(grid_of_any(config)) // merged**2, merged * patch, merged * patch, _channels(config))
    return {"pixel_values": pixels, **_shape(config, pixels, merged)}


def _channels(config: Any) -> int:
    return next((getattr(config, n) for n in ("in_channels", "num_channels") if hasattr(config, n)), 3)


def _shape(config: Any, pixels: Tensor, merged: int = 1) -> dict[str, Tensor]:
    shape = torch.tensor([[1, *(side // merged for side in grid_of_any(config))]], device=pixels.device)
    return dict.fromkeys(GRIDS, shape)


def patches(config: Any, random: Random) -> dict[str, Any]:
    """Patches of one picture."""
    return {"pixel_values": random(1, math.prod(grid_of(config)), config.num_channels * config.patch_size**2)}


def placed_patches(config: Any, random: Random) -> dict[str, Any]:
    """Patches of one picture, with column and row of each."""
    rows, columns = grid_of_pooled(config)
    pixels = random(1, rows * columns, 3 * config.patch_size**2)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)[None]
    return {"pixel_values": pixels, "pixel_position_ids": places.to(pixels.device)}


def flattened_patches(config: Any, random: Random) -> dict[str, Any]:
    """Patches of one picture, behind row and column of each."""
    rows = random(1, config.seq_len, 2 + config.patch_embed_hidden_size)
    rows[..., 0], rows[..., 1] = 1, torch.arange(config.seq_len)
    return {"flattened_patches": rows}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
