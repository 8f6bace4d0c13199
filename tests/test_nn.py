"""tokred.nn.Reduce: the same reduction placed by hand."""

import pytest
import torch

import tokred


def tokens(batch=2, count=21, width=16):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(1))


def test_a_layer_placed_by_hand_works_in_a_sequence():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), tokred.nn.Reduce(tokred.ToMe(r=4)), torch.nn.Linear(16, 3))
    assert model(tokens()).shape == (2, 17, 3)


def test_sizes_are_summed_and_weigh_the_next_merge():
    layer = tokred.nn.Reduce(tokred.ToMe(r=4))
    x, sizes = tokens(), torch.ones(2, 21)
    total = x.sum(dim=1)
    for _ in range(3):
        x, sizes = layer(x, sizes)
    assert x.shape == (2, 9, 16)
    assert torch.equal(sizes.sum(dim=1), torch.full((2,), 21.0))
    torch.testing.assert_close((x * sizes.unsqueeze(2)).sum(dim=1), total, atol=1e-4, rtol=1e-4)


def test_prefix_tokens_stay_as_they_are():
    x = tokens()
    layer = tokred.nn.Reduce(tokred.PiToMe(keep=0.6), num_prefix=3)
    assert torch.equal(layer(x)[:, :3], x[:, :3])


def test_zero_reduction_is_the_identity():
    x = tokens()
    assert torch.equal(tokred.nn.Reduce(tokred.ToMe(r=0))(x), x)


def test_gradients_reach_merged_tokens():
    x = tokens().requires_grad_()
    tokred.nn.Reduce(tokred.ToMe(r=6))(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_methods_that_need_attention_are_refused_with_what_to_use():
    with pytest.raises(ValueError, match="TopK needs k, q of an attention"):
        tokred.nn.Reduce(tokred.TopK())


def test_the_layer_shows_its_method():
    assert "ToMe(" in repr(tokred.nn.Reduce(tokred.ToMe(r=4)))
