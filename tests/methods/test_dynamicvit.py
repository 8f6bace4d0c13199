"""DynamicViT: soft in training, hard in use, and the losses of the paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tokred
from tests.oracle import dynamicvit as oracle
from tokred import DynamicViT, LayerView, TokenMap
from tokred.adapters.site import key_bias
from tokred.methods.dynamicvit import dynamicvit_loss, ratio_loss
from tokred.state import TokenState

from .learned import arrays, images, shaken, small
from .test_against_oracles import each_prefix, few, tensor, tokens

GAPPED = "vit_base_patch16_siglip_gap_224"
ATTENDED = "vit_base_patch16_siglip_224"
BIASED, ROTATED = "beit_base_patch16_224", "vit_small_patch16_dinov3"


def part(dim: int, seed: int = 1):
    shape = tokred.ModelShape.vit(depth=2, dim=dim, heads=1, patches=9)
    return shaken(DynamicViT(layers=(0,)).modules(shape)["0"], seed).eval()


@each_prefix
@few
@given(st.data())
def test_the_patches_that_stay_are_those_of_the_oracle(prefix, data):
    t = data.draw(tokens(prefix))
    module, count = part(t.x.shape[2], t.draw(0, 99)), t.draw(1, t.patches - 1)
    policy = t.rng.integers(0, 2, size=(len(t.x), t.count)).astype(np.float64)
    policy[:, -1] = 1
    view = t.view({"prune": prefix + count}, sized=False)
    view.module, view.soft = module, tensor(policy)
    token_map = DynamicViT().reduce(view)
    for image in range(len(t.x)):
        probability = oracle.scores(t.x[image, prefix:], arrays(module), policy[image, prefix:].tolist())
        order = np.argsort(-probability, kind="stable")
        assume((np.diff(-probability[order]) > 1e-6).all())
        assert token_map.kept[image].tolist() == [*range(prefix), *(prefix + order[:count])]


def test_decisions_are_drawn_with_the_probabilities_of_the_predictor():
    module, x = part(8), torch.randn(1, 7, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        view = LayerView(x, stay={"prune": 4}, num_prefix=1, module=module.train())
        maps = [DynamicViT().reduce(view) for _ in range(2000)]
        drawn = torch.stack([token_map.soft[0] for token_map in maps])
        wanted = module(x[:, 1:])[0, :, 0].exp()
    assert maps[0].kept.tolist() == [list(range(7))], "all tokens stay"
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn[:, 0] == 1).all(), "the prefix stays"
    torch.testing.assert_close(drawn[:, 1:].mean(dim=0), wanted, atol=0.05, rtol=0)


def test_what_was_dropped_stays_dropped():
    model, x = small(), images()
    with tokred.patch(model, DynamicViT(), trace=True) as handle, torch.no_grad():
        handle.modules.train()
        model(x)
        first, second, third = handle.trace.masks.values()
    assert (first == 0).any()
    assert (second <= first).all()
    assert (third <= second).all()


class Fixed(DynamicViT):
    """Hides what it would drop."""

    def reduce(self, view):
        if not view.module.training:
            return super().reduce(view)
        stay = view.stay["prune"] - view.num_prefix
        score = view.module(view.x[:, view.num_prefix :], self._policy(view))[:, :, 0]
        if view.soft is not None:
            score = score.masked_fill(view.soft[:, view.num_prefix :] == 0, -torch.inf)
        kept = torch.cat([view.prefix_index(), score.argsort(1, descending=True)[:, :stay] + view.num_prefix], 1)
        soft = torch.zeros(view.x.shape[:2]).scatter(1, kept, 1.0)
        return replace(TokenMap.identity(view.batch, view.num_tokens), soft=soft)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", GAPPED, ATTENDED, BIASED, ROTATED])
@torch.no_grad()
def test_a_mask_of_zeros_and_ones_does_what_dropping_does(name):
    model, x = shaken(small(name), 8), images()
    with tokred.patch(model, Fixed(keep=0.6), trace=True) as handle:
        shaken(handle.modules, 4)
        hard = model(x)
        kept = [step.map.kept.shape[1] for step in handle.trace.state.steps]
        handle.modules.train()
        soft = model(x)
        assert [int(m.sum(1).max()) + handle.tower.shape.num_prefix for m in handle.trace.masks.values()] == kept
        assert all(step.map.num_slots == handle.tower.shape.num_tokens for step in handle.trace.state.steps)
    assert (hard - model(x)).abs().max() > 1e-3
    torch.testing.assert_close(soft, hard, rtol=1e-4, atol=1e-4)


def test_the_classification_loss_alone_reaches_every_predictor():
    model, x = small().requires_grad_(False), images()
    torch.manual_seed(2)
    with tokred.patch(model, DynamicViT(), trace=True) as handle:
        handle.modules.train()
        torch.nn.functional.cross_entropy(model(x), torch.tensor([1, 3])).backward()
        assert list(handle.trace.masks) == [0, 1, 2]
        for name, parameter in handle.modules.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_of_a_mask_is_that_of_the_masked_softmax():
    logits, value = torch.randn(1, 1, 5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    masks = []
    for hide in (False, True):
        mask = torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64, requires_grad=True)
        if hide:
            attention = (logits + key_bias(TokenState(5, soft=mask[None]), True, mask.dtype)).softmax(dim=-1)
        else:
            weights = logits.exp() * torch.where(torch.eye(5, dtype=torch.bool), 1.0, mask)
            attention = weights / weights.sum(dim=-1, keepdim=True)
        (attention @ value).square().sum().backward()
        masks.append(mask.grad)
    torch.testing.assert_close(masks[1], masks[0], rtol=1e-4, atol=1e-4)


def test_training_by_the_ratio_brings_every_stage_to_its_share():
    model, x = small().requires_grad_(False), images(4)
    method = DynamicViT(keep=0.5)
    torch.manual_seed(0)
    with tokred.patch(model, method, trace=True) as handle:
        optimizer = torch.optim.Adam(shaken(handle.modules.train()).parameters(), lr=0.02)
        shares = method.shares(handle.tower.shape)
        assert list(shares.values()) == [8 / 16, 4 / 16, 2 / 16]

        def left():
            model(x)
            return [float(mask.detach().mean()) for mask in handle.trace.masks.values()]

        before = np.mean([left() for _ in range(20)], axis=0)
        for _ in range(80):
            optimizer.zero_grad()
            model(x)
            ratio_loss(list(handle.trace.masks.values()), list(shares.values())).backward()
            optimizer.step()
        after = np.mean([left() for _ in range(20)], axis=0)
    wanted = np.array(list(shares.values()))
    assert np.abs(after - wanted).max() < 0.08
    assert np.abs(before - wanted).max() > 0.12, "they were not there before"


def test_the_losses_are_those_of_the_oracle():
    g = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 5, generator=g)
    tokens, teacher_tokens = torch.randn(2, 3, 6, 4, generator=g)
    first = (torch.rand(3, 6, generator=g) < 0.7).float()
    masks, shares = {2: first, 5: first * (torch.rand(3, 6, generator=g) < 0.7)}, {2: 0.7, 5: 0.5}
    labels = torch.tensor([0, 4, 2])
    found = dynamicvit_loss(
        logits, labels, masks, shares, teacher_logits=teacher, tokens=tokens, teacher_tokens=teacher_tokens
    )
    assert float(found.ratio) == pytest.approx(
        oracle.ratio([m.double().numpy() for m in masks.values()], [0.7, 0.5]), rel=1e-5
    )
    assert float(found.logits) == pytest.approx(
        oracle.divergence(teacher.double().numpy(), logits.double().numpy()), rel=1e-5
    )
    assert float(found.tokens) == pytest.approx(
        oracle.token_distance(tokens.numpy(), teacher_tokens.numpy(), masks[5].numpy()), rel=1e-5
    )
    total = found.classification + 2 * found.ratio + 0.5 * found.logits + 0.5 * found.tokens
    torch.testing.assert_close(found.total, total)
    alone = dynamicvit_loss(logits, labels, masks, shares)
    assert (alone.logits, alone.tokens) == (0, 0)


def test_losses_that_do_not_fit_together_are_refused():
    masks, logits, labels = {2: torch.ones(2, 4)}, torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"masks of the blocks \[2\], and shares for \[2, 5\]"):
        dynamicvit_loss(logits, labels, masks, {2: 0.5, 5: 0.2})
    with pytest.raises(ValueError, match="Give the patches of both models"):
        dynamicvit_loss(logits, labels, masks, {2: 0.5}, tokens=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="temperature=0: a temperature must be above 0"):
        DynamicViT(temperature=0)


def test_a_checkpointed_model_gets_the_same_gradients_of_the_same_draws():
    model, x, found = small().requires_grad_(False), images(), []
    model.patch_embed.requires_grad_(True)  # timm checkpoints only what needs gradients at its entry
    with tokred.patch(model, DynamicViT()) as handle:
        for checkpointing in (False, True):
            model.set_grad_checkpointing(checkpointing)
            handle.modules.train().zero_grad()
            torch.manual_seed(5)
            model(x).square().sum().backward()
            found.append(handle.modules["1"].in_conv[1].weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])
