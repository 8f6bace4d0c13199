"""Tokenizers of latents: what is asked of diffusers, with something that stands in for it."""

import sys
import types

import pytest
import torch
from torch import nn

from tests.tokenizers.tiny import flextok
from tokred.errors import ConfigError, DataError
from tokred.tokenizers.flextok.config import AutoencoderSpec

SPEC = AutoencoderSpec(scaling_factor=0.5, downsampling=2, args={"latent_channels": 4})


class _Posterior:
    def __init__(self, mean):
        self.mean = mean

    def mode(self):
        return self.mean

    def sample(self):
        return self.mean + torch.randn_like(self.mean)


class _AutoencoderKL(nn.Module):
    """Every fourth pixel of three channels, and one more."""

    def __init__(self, latent_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.latent_channels = latent_channels

    def encode(self, images):
        latents = nn.functional.pad(images[..., ::2, ::2], (0, 0, 0, 0, 0, self.latent_channels - 3))
        return types.SimpleNamespace(latent_dist=_Posterior(latents * self.weight))

    def decode(self, latents):
        return types.SimpleNamespace(sample=nn.functional.interpolate(latents[:, :3], scale_factor=2))


@pytest.fixture
def _diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", types.SimpleNamespace(AutoencoderKL=_AutoencoderKL))


def model(**changes):
    return flextok(channels=4, autoencoder=SPEC.model_copy(update=changes))


@pytest.mark.usefixtures("_diffusers")
def test_latents_are_scaled_on_the_way_in_and_back_on_the_way_out():
    tokenizer = model()
    assert (tokenizer.side, tokenizer.channels) == (32, 3)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = tokenizer.to_latents(images)
    torch.testing.assert_close(latents[:, :3], images[..., ::2, ::2] * 0.5 * tokenizer.vae.vae.weight)
    torch.testing.assert_close(tokenizer.to_images(latents)[..., ::2, ::2], 2 * latents[:, :3])
    codes = tokenizer.encode(images)
    assert torch.equal(tokenizer.encode(images), codes)
    assert tokenizer.decode(codes, steps=1).shape == images.shape


@pytest.mark.usefixtures("_diffusers")
def test_posteriors_are_drawn_from_only_where_the_configuration_says_so():
    images = torch.zeros(1, 3, 32, 32)
    drawn = model(sample_posterior=True)
    assert not torch.equal(drawn.to_latents(images), drawn.to_latents(images))


@pytest.mark.usefixtures("_diffusers")
def test_arguments_that_the_autoencoder_does_not_take_are_refused():
    with pytest.raises(ConfigError, match=r"autoencoder\.args"):
        model(args={"latents": 4})


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DataError, match=r"tokred\[vae\]"):
        model()
