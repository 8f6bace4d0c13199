"""Classes named by texts."""

import pytest
import torch

from tests.clip import tiny_clip
from tokred.errors import DataError
from tokred.evaluate.zero_shot import class_features, nearest_class


def test_a_class_is_the_mean_of_its_descriptions():
    model, tokenizer = tiny_clip()
    templates = ("a {}", "the small {}")
    found = class_features(model, tokenizer, ("red", "ring"), templates)
    with torch.no_grad():
        for row, name in zip(found, ("red", "ring"), strict=True):
            own = model.encode_text(tokenizer([template.format(name) for template in templates]), normalize=True)
            torch.testing.assert_close(row, own.mean(0) / own.mean(0).norm())


def test_the_nearest_class_is_that_of_the_greatest_cosine_whatever_the_lengths():
    images = torch.tensor([[9.0, 1.0], [0.1, 0.2]])
    assert nearest_class(images, torch.tensor([[0.1, 0.0], [0.0, 50.0]])).tolist() == [0, 1]


def test_templates_without_a_place_and_no_classes_are_refused():
    model, tokenizer = tiny_clip()
    with pytest.raises(DataError, match=r"'a picture' has no \{\}"):
        class_features(model, tokenizer, ("red",), ("a picture",))
    with pytest.raises(DataError, match="at least one class"):
        class_features(model, tokenizer, ())
    with pytest.raises(DataError, match="no word 'dog'"):
        class_features(model, tokenizer, ("dog",), ("a {}",))
