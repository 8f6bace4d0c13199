"""Features are what the classifier reads, for models with one, with two and without."""

import pytest
import torch
from timm import create_model
from torch import nn

from tokred import ToMe, patch
from tokred.errors import UnsupportedModelError
from tokred.evaluate.penultimate import Penultimate

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("is_patched", [False, True])
@torch.inference_mode()
def test_they_are_timm_s_own_before_the_logits(classes: int, is_patched: bool):
    model = create_model("vit_tiny_patch16_224", num_classes=classes, **SMALL).eval()
    if is_patched:
        patch(model, ToMe(r=1))
    with Penultimate(model) as features:
        output = model(IMAGES)
        found = features.take()
    assert torch.equal(found, model.forward_head(model.forward_features(IMAGES), pre_logits=True))
    assert torch.equal(found, output) == (classes == 0)


@torch.inference_mode()
def test_of_two_heads_the_first_is_read_and_nothing_stays_behind():
    model = create_model("deit_tiny_distilled_patch16_224", **SMALL).eval()
    with Penultimate(model) as features:
        model(IMAGES)
        assert torch.equal(features.take(), model.forward_features(IMAGES)[:, 0])
    assert not model.get_classifier()[0]._forward_pre_hooks


def test_a_model_without_such_features_is_refused():
    with (
        Penultimate(nn.Identity()) as features,
        pytest.raises(UnsupportedModelError, match=r"Identity does not show .* given nothing"),
    ):
        features.take()
