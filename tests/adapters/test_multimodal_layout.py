"""Where visual tokens come from: whoever changes one patch of a tower changes the tokens that the layout names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokred
from tokred.adapters.multimodal import encoder_attention, find_multimodal
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod
from tokred.token_map import TokenMap

from . import zoo_multimodal as zoo

READING = [kind.name for kind in zoo.KINDS if kind.reads]
SPREADING = ("LlavaOnevision",)  # large mosaics are interpolated, so that patches reach their neighbours


@dataclass(frozen=True, kw_only=True)
class Look(FeatureMethod):
    """Keeps everything and remembers what it saw."""

    views: list[FeatureView] = field(default_factory=list, compare=False)

    def reduce(self, view: FeatureView) -> TokenMap:
        view.attention()  # so that it is read
        self.views.append(view)
        return TokenMap.identity(1, view.num_tokens, view.features.device)


def block_of(encoder: nn.Module, attn: nn.Module) -> nn.Module:
    """The block of an encoder that an attention module is in."""
    lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    return next(block for blocks in lists for block in blocks if any(m is attn for m in block.modules()))


def shown_tokens(view: FeatureView, partition: int, patch: int, patches: int) -> Tensor:
    """Which tokens of an image show a patch, as scores find their way to tokens."""
    attention = view.attention()
    values = torch.zeros(view.layout.num_partitions, 1, patches)
    values[partition, 0, patch] = 1.0
    pooled = values if attention.pool is None else attention.pool(values)
    return view.layout.to_tokens(pooled[:, 0]).nonzero().squeeze(1)


class Tower:
    """The encoder of a model, whose patches can be changed where its features are made."""

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self.model = model
        parts = find_multimodal(model)
        self.pixels = {
            k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask") and "type_ids" not in k
        }
        self.method = Look()
        self.features = self.run()
        view = self.method.views[0]
        self.block = block_of(parts.encoder, encoder_attention(parts.encoder)[view.produced_by])

    @torch.no_grad()
    def run(self) -> Tensor:
        """[all tokens, D] features."""
        self.method.views.clear()
        with tokred.patch(self.model, self.method):
            return torch.cat(list(self.model.model.get_image_features(**self.pixels, return_dict=True).pooler_output))

    def changed(self, row: int, place: int, start: int) -> Tensor:
        """Tokens that change with one patch.

        Args:
            row: of the batch of the tower.
            place: of the patch in it.
            start: tokens in front of that row, where all are in one sequence.
        """

        def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            x = (output[0] if isinstance(output, tuple) else output).clone()
            flat = x if x.ndim == 2 else x[0] if len(x) == 1 else None
            target = x[row, place] if flat is None or (x.ndim == 3 and start < 0) else flat[start + place]
            target += 10 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
            return (x, *output[1:]) if isinstance(output, tuple) else x

        hook = self.block.register_forward_hook(change, prepend=True)  # the model collects states by hooks, too
        try:
            after = self.run()
        finally:
            hook.remove()
        return ((after - self.features).abs().amax(dim=1) > 1e-3).nonzero().squeeze(1)


@pytest.mark.parametrize("name", READING)
def test_one_patch_changes_the_tokens_that_show_it(name: str):
    model = zoo.build(name)
    tower = Tower(model, zoo.prompts(name, model, [1, 1]))
    views = list(tower.method.views)
    generator = torch.Generator().manual_seed(0)
    row = first = token = found = 0
    for view in views:
        attention = view.attention()
        prefix = attention.num_prefix
        side = 1 if attention.pool is None else 2
        patches = view.layout.num_patches * side**2
        for partition in range(view.layout.num_partitions):
            for patch in torch.randint(patches, (3,), generator=generator).tolist():
                expected = shown_tokens(view, partition, patch, patches) + token
                changed = tower.changed(row, prefix + patch, first)
                if name in SPREADING and partition:
                    assert set(expected.tolist()) <= set(changed.tolist())
                else:
                    assert changed.tolist() == expected.tolist()
                found += len(expected)
            row, first = row + 1, first + patches
        token += view.num_tokens
    assert token == len(tower.features)
    assert found >= 3 * len(views)
