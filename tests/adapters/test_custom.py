"""A block class of one's own, taught by its parts."""

import pytest
import torch
from timm.layers import Attention, Mlp
from torch import nn

import tokred
from tokred.adapters.base import registry


class OwnBlock(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads=4, qkv_bias=True)
        self.feed_forward = Mlp(dim, 2 * dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.7))

    def forward(self, x, attn_mask=None):
        x = x + self.scale * self.attention(self.ln_1(x), attn_mask=attn_mask)
        return x + self.feed_forward(self.ln_2(x))


class ChangedBlock(OwnBlock):
    def forward(self, x, attn_mask=None):
        return super().forward(x, attn_mask) * 2


class OwnModel(nn.Module):
    num_prefix_tokens = 1

    def __init__(self, block=OwnBlock):
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


PARTS = {"attention": ("ln_1", "attention", "scale"), "mlp": ("ln_2", "feed_forward"), "attn": "attention"}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry.blocks, "_parts", dict(registry.blocks._parts))
    tokred.register_adapter(OwnBlock, **PARTS)


def tokens():
    return torch.randn(2, 41, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [tokred.ToMe(r=4), tokred.PiToMe(keep=0.8), tokred.TopK(layers=(0, 1))])
@torch.no_grad()
def test_a_registered_block_is_patched_and_given_back(registered, method):
    model, x = OwnModel().eval(), tokens()
    before = model(x)
    with tokred.patch(model, method, trace=True) as handle:
        reduced = model(x)
        assert reduced.shape[1] == handle.trace.tokens_per_layer[-1] < 41
    assert torch.equal(model(x), before)


def test_a_block_that_was_not_registered_is_refused_by_name():
    with pytest.raises(tokred.UnsupportedModelError, match=r"blocks of class OwnBlock.*register_adapter"):
        tokred.patch(OwnModel(), tokred.ToMe())


def test_a_subclass_with_its_own_forward_is_not_taken_for_its_base(registered):
    with pytest.raises(tokred.UnsupportedModelError, match="ChangedBlock"):
        tokred.patch(OwnModel(ChangedBlock), tokred.ToMe())


def test_a_wrong_description_is_caught_by_the_self_check(registered):
    tokred.register_adapter(OwnBlock, attention=("ln_1", "attention"), mlp=("ln_2", "feed_forward"), attn="attention")
    model = OwnModel()
    with pytest.raises(tokred.UnsupportedModelError, match="change the output by"):
        tokred.patch(model, tokred.ToMe())
    assert all("forward" not in vars(layer) for layer in model.layers), "the model is left as it was"
