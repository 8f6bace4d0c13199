"""timm's plain vision transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import beit, eva, naflexvit, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn

from tokred.adapters.base import Adapter, Tower, Undo, measure_block, registry
from tokred.adapters.flops import FlopCounter
from tokred.adapters.parts import BlockParts
from tokred.adapters.site import Reduction
from tokred.adapters.surroundings import RunningMethod
from tokred.adapters.timm_attention import TimmAttentionReader
from tokred.adapters.timm_head import ReducedHead, carry_state, weigh_attention_pool
from tokred.errors import UnsupportedModelError
from tokred.shape import ModelShape

_QKV = TimmAttentionReader()
_PRE_NORM = {
    "attention": ("norm1", "attn", "ls1", "drop_path1"),
    "mlp": ("norm2", "mlp", "ls2", "drop_path2"),
}
_POST_NORM = {
    "attention": ("attn", "norm1", "drop_path1"),
    "mlp": ("mlp", "norm2", "drop_path2"),
}
_GAMMA = {
    "attention": ("norm1", "attn", "gamma_1", "drop_path1"),
    "mlp": ("norm2", "mlp", "gamma_2", "drop_path2"),
}
_STACKED = {
    "attention": ("norm", "attn", "ls", "drop_path"),
    "mlp": ("norm", "mlp", "ls", "drop_path"),
    "attention_stack": "attns",
    "mlp_stack": "ffns",
}
_ROPE = {"attn_mask": "bias", "rope": "rope"}
_BEIT = {
    "indexed": {"shared_rel_pos_bias": "bias"},
    "bias": "shared_rel_pos_bias",
    "own_bias": ("attn", "_get_rel_pos_bias"),
}
_RELPOS = {
    "indexed": {"shared_rel_pos": "bias"},
    "bias": "shared_rel_pos",
    "own_bias": ("attn.rel_pos", "get_bias"),
    "own_bias_only": True,
}

# module, class, how it is put together; classes that an older timm does not have are skipped
_BLOCKS: list[tuple[Any, str, dict[str, Any]]] = [
    (vision_transformer, "Block", {**_PRE_NORM, "reader": _QKV}),
    (vision_transformer, "ResPostBlock", {**_POST_NORM, "reader": _QKV}),
    (vision_transformer, "ParallelThingsBlock", {**_STACKED, "reader": _QKV}),
    (
        vision_transformer,
        "ParallelScalingBlock",
        {"attention": (), "mlp": (), "reader": TimmAttentionReader(tokens_first=True)},
    ),
    (vision_transformer, "DiffParallelScalingBlock", {"attention": (), "mlp": (), "reader": _QKV}),
    (eva, "EvaBlock", {**_GAMMA, "indexed": _ROPE, "reader": _QKV}),
    (eva, "EvaBlockPostNorm", {**_POST_NORM, "indexed": _ROPE, "reader": _QKV}),
    (beit, "Block", {**_GAMMA, **_BEIT, "reader": _QKV}),
    (vision_transformer_relpos, "RelPosBlock", {**_PRE_NORM, **_RELPOS, "reader": _QKV}),
    (vision_transformer_relpos, "ResPostRelPosBlock", {**_POST_NORM, **_RELPOS, "reader": _QKV}),
]

for _module, _name, _arguments in _BLOCKS:
    if hasattr(_module, _name):
        registry.blocks.add(getattr(_module, _name), BlockParts(**_arguments))


class TimmTower(Tower):
    """A timm model with a flat list of ``blocks``."""

    family = "timm"
    classifies = True

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], parts: Sequence[BlockParts]) -> None:
        super().__init__(module, blocks, parts)
        self.padding_in_mask = isinstance(module, naflexvit.NaFlexVit)

    def measure(self) -> ModelShape:
        """Read the sizes; stem and head are counted on the meta device, where nothing is computed."""
        model: Any = self.module
        blocks = tuple(measure_block(block, parts) for block, parts in zip(self.blocks, self.parts, strict=True))
        grid = self._grid()
        prefix = int(model.num_prefix_tokens)
        pooled = getattr(model, "attn_pool", None)
        weights = sum(p.numel() for n, p in pooled.named_parameters() if "kv" in n and p.ndim == 2) if pooled else 0
        return ModelShape(
            blocks=blocks,
            num_tokens=grid[0] * grid[1] + prefix,
            num_prefix=prefix,
            registers_only=getattr(getattr(model, "embeds", model), "cls_token", None) is None,
            grid=grid,
            dim=int(model.embed_dim),
            stem_macs=self._stem_macs(),
            head_macs=_linear_macs(model, ("head", "head_dist")) + _pool_macs(pooled),
            head_weights=weights,
            parameters=sum(p.numel() for p in model.parameters()),
        )

    def example(self) -> Tensor:
        """One random image of the model's input size."""
        parameter = next(self.module.parameters())
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, *self._input_size(), generator=generator)
        return image.to(parameter.device, parameter.dtype if parameter.is_floating_point() else torch.float32)

    def run(self, example: Any) -> Tensor:
        """Logits, or pooled features."""
        return self.module(example)

    def install(self, reduction: Reduction) -> list[Undo]:
        """Pool by size, and give intermediate features in full length."""
        model: Any = self.module
        undo: list[Undo] = [ReducedHead(model, reduction).install()]
        collecting = ["forward_intermediates", *(["forward_features"] if reduction.full_length else [])]
        undo += [RunningMethod(model, name, full_length=True).install() for name in collecting if hasattr(model, name)]
        undo.append(model.norm.register_forward_hook(carry_state).remove)
        if getattr(model, "attn_pool", None) is not None and reduction.method.pools_by_size:
            undo.append(model.attn_pool.register_forward_pre_hook(weigh_attention_pool, with_kwargs=True).remove)
        return undo

    def _input_size(self) -> tuple[int, int, int]:
        """Channels, height and width that the model was built for, or trained on if it takes any size."""
        model: Any = self.module
        embed = getattr(model, "patch_embed", None) or model.embeds
        size = getattr(embed, "img_size", None)
        if size is None:
            size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
        return getattr(model, "in_chans", None) or _input_channels(embed), *size

    def _grid(self) -> tuple[int, int]:
        model: Any = self.module
        embed = getattr(model, "patch_embed", None) or model.embeds
        rows, columns = getattr(embed, "grid_size", None) or embed.dynamic_feat_size(self._input_size()[1:])
        return int(rows), int(columns)

    def _stem_macs(self) -> int:
        model: Any = self.module
        embed = getattr(model, "patch_embed", None)
        if embed is None:
            grid = self._grid()
            return grid[0] * grid[1] * sum(p.numel() for p in model.embeds.proj.parameters() if p.ndim > 1)
        first = next(embed.parameters())
        try:
            from torch._subclasses.fake_tensor import FakeTensorMode

            with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounter() as counter:
                embed(fake.from_tensor(torch.empty(1, *self._input_size(), dtype=first.dtype, device=first.device)))
            return counter.get_total_flops() // 2
        except Exception as error:
            raise UnsupportedModelError(f"The cost of {type(embed).__name__} cannot be counted: {error}") from error


class TimmAdapter(Adapter):
    """Every timm model whose ``blocks`` are all of known classes."""

    name = "timm"

    def tower(self, module: nn.Module) -> Tower | None:
        """A tower if all blocks are known and the model says how many prefix tokens it has."""
        blocks = getattr(module, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
            return None
        if not hasattr(module, "num_prefix_tokens") or not hasattr(module, "forward_head"):
            return None
        parts = [registry.blocks.find(block) for block in blocks]
        known = [p for p in parts if p is not None]
        return TimmTower(module, list(blocks), known) if len(known) == len(parts) else None

    def supported(self) -> list[str]:
        """The plain vision transformers."""
        return ["ViT", "DeiT", "EVA", "DINOv2", "DINOv3", "BEiT", "SigLIP", "NaFlexViT", "RelPos ViT", "hybrid ViT"]


registry.add(TimmAdapter())


def _linear_macs(model: nn.Module, names: tuple[str, ...]) -> int:
    heads = [getattr(model, name, None) for name in names]
    return sum(h.weight.numel() for h in heads if isinstance(h, nn.Linear))


def _pool_macs(pool: nn.Module | None) -> int:
    """Multiply-accumulates of an attention pool that do not depend on the number of tokens."""
    if pool is None:
        return 0
    return sum(p.numel() for n, p in pool.named_parameters() if "kv" not in n and p.ndim == 2)


def _input_channels(embed: nn.Module) -> int:
    convolution = next((m for m in embed.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is not None:
        return convolution.in_channels * convolution.groups if convolution.groups > 1 else convolution.in_channels
    return 3
