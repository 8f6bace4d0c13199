"""How the patches that an image encoder saw become visual tokens, for every family of multimodal models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from tokred.adapters.multimodal import MultimodalModel
from tokred.layout import VisualLayout

Kind = Literal["same", "blocks", "groups"]
PACK = "pack_image_features"  # the method of models that put tiles together

_KINDS: dict[Kind, tuple[str, ...]] = {
    # one visual token a patch, projected alone
    "same": (
        "llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "paligemma",
        "deepseek_vl", "deepseek_vl_hybrid", "janus",
    ),
    # squares of patches, side by side, become one token
    "blocks": (
        "internvl", "idefics3", "smolvlm", "granite_docling", "gemma3", "mistral3", "lighton_ocr", "aya_vision",
        "cohere2_vision", "qianfan_ocr", "ovis2", "lfm2_vl", "mistral_large4", "paddleocr_vl", "kimi_k25",
        "llava_next_video/video",
    ),
    # patches that follow each other become one token
    "groups": (
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm46v",
        "glm_ocr", "video_llama_3", "exaone4_5", "hyperclovax_vision_v2",
    ),
}  # fmt: skip
KIND_OF: dict[str, Kind] = {family: kind for kind, families in _KINDS.items() for family in families}


def kind_of(family: str, modality: str = "image") -> Kind | None:
    """How patches become visual tokens; ``None`` where that is not known."""
    return KIND_OF.get(f"{family}/{modality}") or KIND_OF.get(family)


@dataclass(frozen=True, eq=False)
class Unit:
    """What the encoder took as one image: an image, a tile, or a video.

    Attributes:
        grid: rows and columns of patches.
        frames: of a video.
    """

    grid: tuple[int, int]
    frames: int = 1

    @property
    def num_patches(self) -> int:
        """Patches of all frames."""
        return self.frames * self.grid[0] * self.grid[1]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image behind the connector.

    Attributes:
        features: [n, D] visual tokens.
        layout: where they come from; ``None`` where that is not known.
        units: which units of the encoder it is made of.
    """

    features: Tensor
    layout: VisualLayout | None
    units: slice


def units_of(model: MultimodalModel, arguments: Mapping[str, Any], count: int) -> list[Unit] | None:
    """What the encoder saw.

    Args:
        model: the model.
        arguments: of ``get_image_features`` or ``get_video_features``.
        count: images that went through the encoder, where they all have one size.
    """
    for name in ("image_grid_thw", "video_grid_thw", "grid_thw"):
        if arguments.get(name) is not None:
            return [Unit((h, w), t) for t, h, w in arguments[name].tolist()]
    if arguments.get("spatial_shapes") is not None:
        return [Unit((h, w)) for h, w in arguments["spatial_shapes"].tolist()]
    patch = getattr(model.inner.config.vision_config, "patch_size", None)
    if patch is None:
        return None
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    if getattr(getattr(model.encoder, "config", None), "model_type", "") == "pixtral":
        return [Unit((h // rows, w // columns)) for h, w in torch.as_tensor(arguments["image_sizes"]).tolist()]
    pixels = next((v for k, v in arguments.items() if k.startswith("pixel_values") and isinstance(v, Tensor)), None)
    if pixels is None:
        return None
    grid = pixels.shape[-2] // rows, pixels.shape[-1] // columns
    if arguments.get("pixel_values_videos") is not None and pixels.ndim == 5:
        return [Unit(grid, pixels.shape[1])] * len(pixels)
    return [Unit(grid)] * count


def encoded_images(
    features: Tensor | Sequence[Tensor],
    units: list[Unit] | None,
    packing: Packing | None,
    kind: Kind | None,
) -> list[EncodedImage]:
    """The images of one call of ``get_image_features``, in the order of their tokens.

    Args:
        features: what the model returned: [n, D] for every image, prompt or tile.
        units: what the encoder saw.
        packing: how tiles were put together, where they were.
        kind: of the connector.
    """
    rows = [row.flatten(0, -2) for row in features]  # some have the frames of a video apart
    if packing is not None:
        layouts = packing.layouts()
        ends = torch.tensor([0, *packing.counts]).cumsum(0).tolist()
        return [
            EncodedImage(row, layout if layout.num_tokens == len(row) else None, slice(ends[i], ends[i + 1]))
            for i, (row, layout) in enumerate(zip(rows, layouts, strict=True))
        ]
    total = sum(len(row) for row in rows)
    ratio = sum(unit.num_patches for unit in units) / max(total, 1) if units else 0.0
    side = round(ratio**0.5)
    if kind is None or units is None or side * side != ratio:
        each = total // len(units) if units and len(units) > len(rows) and total % len(units) == 0 else 0
        if each and all(len(row) % each == 0 for row in rows):  # as many tokens for every image of a prompt
            rows = [image for row in rows for image in row.split(each) if len(row)]
        return [EncodedImage(row, None, slice(0)) for row in rows if len(row)]
    images, number = [], 0
    layout_of = cache(partial(VisualLayout.plain, device=features[0].device))  # one for all images of a size
    for row in rows:
        start = 0
        while start < len(row):  # some families return the tiles of a prompt in one piece
            unit = units[number]
            length = unit.num_patches // side**2
            layout = layout_of((unit.grid[0] // side, unit.grid[1] // side), unit.frames)
            images.append(EncodedImage(row[start : start + length], layout, slice(number, number + 1)))
            start, number = start + length, number + 1
    return images


def pooling(kind: Kind | None, unit: Unit, tokens: int, order: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """How values of patches [P, H, patches] become values of visual tokens; ``None`` if they are one.

    Args:
        kind: of the family's connector.
        unit: what the encoder saw.
        tokens: visual tokens of the unit.
        order: [tokens] where in the encoder's order each visual token is, if it has one of its own.
    """
    side = round((unit.num_patches / tokens) ** 0.5)
    if side == 1:
        return None
    if kind == "groups":

        def pool(values: Tensor) -> Tensor:
            pooled = values.unflatten(-1, (-1, side * side)).mean(dim=-1)
            return pooled if order is None else pooled[..., order]

        return pool
    rows, columns = unit.grid

    def pool_blocks(values: Tensor) -> Tensor:
        blocks = values.unflatten(-1, (rows // side, side, columns // side, side))
        return blocks.mean(dim=(-3, -1)).flatten(-2)

    return pool_blocks


def window_order(model: MultimodalModel, grids: Tensor, image: int, merge: int) -> Tensor | None:
    """Where in the encoder's order each visual token of an image is; ``None`` if it has none of its own.

    Encoders with windows (Qwen2.5-VL) sort their patches by window and restore the order behind the connector.

    Args:
        model: the model.
        grids: [images, 3] frames, rows and columns of patches.
        image: which of them.
        merge: patches in a visual token.
    """
    encoder: Any = model.encoder
    sort = getattr(sys.modules[type(encoder).__module__], "get_vision_window_index", None)
    if sort is None or not hasattr(encoder, "window_size"):
        return None
    lengths = (grids.prod(dim=1) // merge).tolist()
    index, _ = sort(grids, encoder.spatial_merge_size, encoder.window_size, encoder.patch_size)
    return index[sum(lengths[:image]) : sum(lengths[: image + 1])].argsort()


class Packing:
    """Does with coordinates what a model did with the features of tiles.

    Args:
        model: the model.
        arguments: with which it put them together, by name.
    """

    def __init__(self, model: MultimodalModel, arguments: Mapping[str, Any]) -> None:
        self.inner = model.inner
        self.arguments = arguments

    @property
    def counts(self) -> list[int]:
        """Partitions of every image."""
        return [len(tiles) for tiles in self.arguments["image_features"]]

    def layouts(self) -> list[VisualLayout]:
        """The layout of every image: (is a tile, row, column) of each patch goes where its features went."""
        config = self.inner.config
        shape_of = sys.modules[type(self.inner).__module__].get_anyres_image_grid_shape
        mosaics: list[tuple[int, int] | None] = []
        coordinates, grids = [], []
        for tiles, size in zip(self.arguments["image_features"], self.arguments["image_sizes"], strict=True):
            side = round(tiles.shape[1] ** 0.5)
            grids.append((side, side))
            mosaic = None
            if len(tiles) > 1:
                mosaic = tuple(shape_of(size, config.image_grid_pinpoints, config.vision_config.image_size))
            mosaics.append(mosaic)
            coordinates.append(_coordinates(len(tiles), side, mosaic, tiles.device))
        packed = getattr(type(self.inner), PACK)(
            self.inner,
            **{
                **self.arguments,
                "image_features": coordinates,
                "image_newline": torch.full((3,), -1.0, device=coordinates[0].device),
            },
        )[0]
        return [_layout(*image) for image in zip(packed, grids, mosaics, strict=True)]


def _coordinates(partitions: int, side: int, mosaic: tuple[int, int] | None, device: torch.device) -> Tensor:
    """[P, N, 3]: 1 for tiles, and row and column, of tiles in the mosaic."""
    index = torch.arange(partitions, device=device)
    row, column = torch.meshgrid(*[torch.arange(side, device=device)] * 2, indexing="ij")
    tile = (index - 1).clamp(min=0)
    columns = mosaic[1] if mosaic is not None else 1
    top, left = (tile // columns) * side, (tile % columns) * side
    parts = (
        (index > 0)[:, None].expand(-1, side * side),
        row.flatten() + top[:, None],
        column.flatten() + left[:, None],
    )
    return torch.stack([part.float() for part in parts], dim=-1)


def _layout(packed: Tensor, grid: tuple[int, int], mosaic: tuple[int, int] | None) -> VisualLayout:
    """Read the layout off packed coordinates [n, 3]; where they were interpolated, the nearest patch counts."""
    kind, row, column = packed.round().long().unbind(dim=-1)
    newline = packed[:, 0] < -0.5
    columns = mosaic[1] if mosaic is not None else 1
    partition = torch.where(kind > 0, 1 + row // grid[0] * columns + column // grid[1], 0)
    return VisualLayout(
        torch.where(newline, -1, partition),
        torch.where(newline, -1, row % grid[0]),
        torch.where(newline, -1, column % grid[1]),
        grid,
        mosaic,
    )
