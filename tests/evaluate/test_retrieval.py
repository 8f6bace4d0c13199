"""Recall at k against counting by hand, and what is refused."""

import pytest
import torch
from torch import nn

from tokred.data import CaptionedImages
from tokred.errors import DataError, NonFiniteError
from tokred.evaluate.retrieval import Captions, recall, retrieve


def by_hand(queries, answers, right, rank):
    """The definition, in loops: is a right answer among the first so many, wrong ones first where scores are equal?"""
    queries, answers = (x / x.norm(dim=1, keepdim=True) for x in (queries, answers))
    found = 0
    for query, own in zip(queries, right, strict=True):
        order = sorted(range(len(answers)), key=lambda i: (-float(query @ answers[i]), bool(own[i])))
        found += any(own[i] for i in order[:rank])
    return 100 * found / len(queries)


@pytest.mark.parametrize("seed", range(3))
def test_recall_is_what_counting_gives_with_several_right_answers(seed):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(n, 4, generator=generator).double() for n in (9, 14))
    right = torch.rand(9, 14, generator=generator) < 0.15
    right[torch.arange(14) % 9, torch.arange(14)] = True
    found = recall(images, texts, right, ranks=(1, 3, 5))
    for rank in (1, 3, 5):
        assert found.image_to_text[rank] == pytest.approx(by_hand(images, texts, right, rank))
        assert found.text_to_image[rank] == pytest.approx(by_hand(texts, images, right.T, rank))
    assert found.columns().keys() == {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 3, 5)}


def test_equal_features_find_nothing():
    found = recall(torch.ones(20, 4), torch.ones(20, 4), torch.eye(20, dtype=torch.bool))
    assert found.image_to_text == {1: 0.0, 5: 0.0}


def test_a_caption_that_two_pictures_have_is_right_for_both():
    captions = Captions([["a", "b"], ["b"], ["c"]])
    assert captions.texts == ("a", "b", "c")
    assert captions.right.tolist() == [[True, True, False], [False, True, False], [False, False, True]]


def test_no_pictures_and_unequal_numbers_are_refused():
    with pytest.raises(DataError, match="at least one"):
        recall(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 0, dtype=torch.bool))
    with pytest.raises(DataError, match="2 pictures and 3 captions, but right answers for 3 pictures and 3"):
        recall(torch.zeros(2, 4), torch.zeros(3, 4), torch.eye(3, dtype=torch.bool))


def test_what_can_never_be_found_is_refused():
    right = torch.tensor([[True, True], [False, False]])
    with pytest.raises(DataError, match="without a right caption"):
        recall(torch.eye(2), torch.eye(2), right)


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(NonFiniteError, match="float32"):
        recall(torch.full((2, 2), torch.nan), torch.eye(2), torch.eye(2, dtype=torch.bool))


class Perfect(nn.Module):
    """Finds a picture of one grey, and a text that is its number."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))
        self.batches = []

    def encode_image(self, images):
        assert not self.training
        self.batches.append(len(images))
        return self.table[images[:, 0, 0, 0].long()]

    def encode_text(self, ids):
        return self.table[ids[:, 0]]


def test_pictures_go_through_the_model_in_batches_and_its_mode_is_kept():
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    data = CaptionedImages(images, [[str(i)] for i in range(8)])
    model, shares = Perfect().train(), []
    found = retrieve(
        model, lambda texts: torch.tensor([[int(t)] for t in texts]), data, torch.Tensor.float, 3, report=shares.append
    )
    assert found.columns() == dict.fromkeys(found.columns(), 100.0)
    assert (found.images, found.texts) == (8, 8)
    assert model.batches == [3, 3, 2]
    assert shares == [3 / 8, 6 / 8, 1.0]
    assert model.training
    assert found.first[0].tolist() == list(range(8))
