"""All ways to proportional attention are the same attention."""

import pytest
import torch
from torch.nn import functional as F

from tokred.ops import proportional
from tokred.ops.proportional import choose_way, proportional_attention

WAYS = ("mask", "keys", "values", "flex", "kernel")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def inputs(dtype, width=20, groups=4, tokens=29, largest=200):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, tokens, width, generator=g).to(dtype) for n in (4, groups, groups))
    sizes = torch.randint(1, largest + 1, (2, tokens), generator=g).float()
    return q, k, v, sizes


def exact(q, k, v, sizes):
    """The definition: key j counted sizes[j] times, in float64."""
    k, v = (t.double().repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    weight = (q.double() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * sizes.double()[:, None, None]
    return (weight / weight.sum(dim=-1, keepdim=True)) @ v


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("groups", [4, 2])
def test_every_way_is_the_definition(way, groups):
    q, k, v, sizes = inputs(torch.float32, groups=groups)
    torch.testing.assert_close(
        proportional_attention(q, k, v, sizes.log(), way=way).double(), exact(q, k, v, sizes), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize("way", ["keys", "values", "kernel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_most_twice_as_far_off_as_the_mask(way, dtype):
    q, k, v, sizes = inputs(dtype, width=64, tokens=101)
    wanted = exact(q, k, v, sizes)
    error, allowed = (
        (proportional_attention(q, k, v, sizes.log(), way=w).double() - wanted).abs().max() for w in (way, "mask")
    )
    assert error <= 2 * allowed


def test_split_channels_are_nearer_than_the_mask_in_bfloat16():
    q, k, v, sizes = inputs(torch.bfloat16, width=64, tokens=197)
    wanted = exact(q, k, v, sizes)
    error, mask = (
        (proportional_attention(q, k, v, sizes.log(), way=w).double() - wanted).square().mean()
        for w in ("keys", "mask")
    )
    assert error < mask


@pytest.mark.parametrize("way", WAYS)
def test_keys_that_nobody_sees_count_for_nothing(way):
    q, k, v, sizes = inputs(torch.float32)
    bias = sizes.log()
    bias[:, 20:] = -torch.inf
    found = proportional_attention(q, k, v, bias, way=way)
    torch.testing.assert_close(
        found, proportional_attention(q, k[:, :, :20], v[:, :, :20], bias[:, :20]), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize("way", WAYS)
def test_one_bias_for_all_images_and_a_scale_of_ones_own(way):
    q, k, v, sizes = inputs(torch.float32)
    bias = sizes[:1].log()
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None], scale=0.3)
    torch.testing.assert_close(proportional_attention(q, k, v, bias, 0.3, way=way), wanted, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("way", ["mask", "keys", "values"])
def test_gradients_agree(way):
    q, k, v, sizes = (t.requires_grad_() for t in inputs(torch.float32))
    found = torch.autograd.grad(proportional_attention(q, k, v, sizes.log(), way=way).square().sum(), (q, k, v))
    wanted = torch.autograd.grad(exact(q, k, v, sizes).square().sum(), (q, k, v))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_table_is_looked_up_by_device_type_and_length(monkeypatch):
    assert choose_way(torch.device("cpu"), torch.float32, 197) == "mask"
    table = {("cpu", torch.float32): ((100, "values"), (1000, "keys"))}
    monkeypatch.setattr(proportional, "CHOICE", table)
    found = [choose_way(torch.device("cpu"), torch.float32, n) for n in (100, 101, 1001)]
    assert found == ["values", "keys", "mask"]
    assert choose_way(torch.device("cpu"), torch.bfloat16, 50) == "mask"


def test_dropout_takes_the_mask():
    q, k, v, sizes = inputs(torch.float32)
    torch.manual_seed(3)
    found = proportional_attention(q, k, v, sizes.log(), dropout=0.5, way="keys")
    torch.manual_seed(3)
    assert torch.equal(found, proportional_attention(q, k, v, sizes.log(), dropout=0.5))
