"""Features of the shipped model are its own, whatever pictures come in."""

import torch

from tokred.assets import load_model
from tokred.data import fashion_mnist_sample
from tokred.data.square import fit
from tokred.evaluate.features import Features, feature_distance


@torch.no_grad()
def test_features_are_those_before_the_head_of_the_shipped_model():
    model, network = load_model("vit-fmnist"), Features()
    images = fashion_mnist_sample().images[:4]
    found = network(fit(images, 32, 1).float() / 127.5 - 1)
    wanted = model((images.float() / 255 - 0.286) / 0.353)
    torch.testing.assert_close(model.head(found), wanted, atol=1e-4, rtol=1e-4)
    assert found.shape[1] == network.num_features


@torch.no_grad()
def test_coloured_pictures_are_seen_as_grey_ones():
    network, grey = Features(), torch.rand(2, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(network(grey.expand(-1, 3, -1, -1)), network(grey), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_equal_pictures_have_no_distance_and_other_ones_more_than_blurred_ones():
    network = Features()
    images = fit(fashion_mnist_sample().images[:20], 32, 1).float() / 127.5 - 1
    tokens = network.patches(images)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    near, far = (feature_distance(tokens, network.patches(x)) for x in (blurred, images.roll(1, 0)))
    assert feature_distance(tokens, tokens).abs().max() < 1e-6
    assert 0 < near.mean() < far.mean()
