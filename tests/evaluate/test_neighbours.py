"""Neighbours vote as in DINO: the k nearest by cosine, the nearer the more."""

import numpy as np
import torch

from tokred.evaluate.neighbours import neighbour_classes


def vote(feature: np.ndarray, known: np.ndarray, labels: np.ndarray, k: int) -> int:
    """One picture, from the formula."""
    cosine = known @ feature / np.linalg.norm(known, axis=1) / np.linalg.norm(feature)
    votes = np.zeros(labels.max() + 1)
    for place in np.argsort(-cosine)[:k]:
        votes[labels[place]] += np.exp(cosine[place] / 0.07)
    return int(votes.argmax())


def test_it_is_what_the_formula_says_in_chunks_and_whole():
    chance = np.random.default_rng(0)
    features, known, labels = chance.normal(size=(600, 5)), chance.normal(size=(90, 5)), chance.integers(0, 4, 90)
    found = neighbour_classes(torch.tensor(features), torch.tensor(known), torch.tensor(labels))
    assert found.tolist() == [vote(feature, known, labels, 20) for feature in features]


def test_a_near_one_outvotes_two_that_are_far():
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    one = torch.tensor([[1.0, 0.1]])
    assert neighbour_classes(one, known, torch.tensor([0, 1, 1]), k=3).tolist() == [0]
    assert neighbour_classes(one, known, torch.tensor([0, 1, 1]), k=3, temperature=100.0).tolist() == [1]


def test_where_fewer_than_k_are_known_all_vote():
    assert neighbour_classes(torch.ones(2, 3), torch.ones(1, 3), torch.tensor([2])).tolist() == [2, 2]
