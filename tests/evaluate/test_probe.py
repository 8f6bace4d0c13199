"""A linear probe reads what is linearly there, and nothing else."""

import torch

from tokred.evaluate.probe import LinearProbe


def test_it_finds_a_linear_rule_on_features_that_it_did_not_see():
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(600, 8, generator=chance) * torch.tensor([100.0, *[1.0] * 7])
    labels = (features[:, 1:] @ torch.randn(7, 3, generator=chance)).argmax(1)
    probe = LinearProbe(features[:400], labels[:400])
    assert probe.accuracy(features[400:], labels[400:]) > 90
    assert probe.accuracy(features[400:], labels[400:].roll(1)) < 60


def test_the_same_features_give_the_same_probe_and_constant_ones_do_no_harm():
    features = torch.cat([torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.ones(50, 1)], dim=1)
    labels = torch.arange(50) % 2
    first, second = LinearProbe(features, labels), LinearProbe(features, labels)
    assert torch.equal(first.weight, second.weight)
    assert torch.isfinite(first.weight).all()
