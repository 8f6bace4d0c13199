"""Models are loaded once; every request patches a copy of its own, and names from a page open no folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokred
from tokred.assets import list_models
from tokred.demo import shelf
from tokred.errors import DataError


def test_copies_share_the_weights_and_nothing_that_a_patch_touches():
    first, second = shelf.encoder("vit-fmnist"), shelf.encoder("vit-fmnist")
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    x = torch.randn(1, 1, 28, 28)
    with torch.inference_mode():
        plain = second(x)
        tokred.patch(first, tokred.ToMe(r=16))
        assert not torch.equal(first(x), plain)
        assert torch.equal(second(x), plain)
        assert torch.equal(shelf.encoder("vit-fmnist")(x), plain)
        second.__dict__.clear()
        assert torch.equal(shelf.encoder("vit-fmnist")(x), plain)


def test_a_copy_of_a_multimodal_model_takes_a_patch_alone():
    (first, _), (second, _) = shelf.multimodal("llava-shapes"), shelf.multimodal("llava-shapes")
    tokred.patch(first, tokred.FoPru(keep=0.25))
    with tokred.patch(second, tokred.FoPru(keep=0.5)):  # the patch of the first would be refused here
        assert next(first.parameters()) is next(second.parameters())


@pytest.mark.parametrize("name", ["", "  ", "/etc", "../models", "~/x", "a/b/c", ".", "tests", "tokred/demo", None])
def test_paths_are_no_names_of_models(name):
    with pytest.raises(DataError, match=r"is no name of a model\. Models that ship with tokred: vit-fmnist"):
        shelf.encoder(name)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(DataError, match="no timm model"):
        shelf.encoder("vit_fmnits")


def test_a_name_may_stand_between_spaces():
    assert shelf.require_name(" vit-fmnist ", list_models()) == "vit-fmnist"
    assert Path("tokred").is_dir(), "the test above of folders looks from here"
