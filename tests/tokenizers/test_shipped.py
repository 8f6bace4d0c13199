"""The tokenizers that ship do what their cards say."""

import itertools
import json
import re

import pytest
import torch

from tokred.data import fashion_mnist_sample, shapes
from tokred.data.square import fit
from tokred.evaluate.reconstruction import curve, mean_image_psnr, psnr
from tokred.folders import shipped_folder
from tokred.tokenizer_assets import list_tokenizers, load_prior, load_tokenizer
from tokred.tokenizers.base import PAD, lengths, pixel_error
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.halting import GRID
from tokred.train.prior import bits

MODELS = shipped_folder("models")
FLEXTOKS = [name for name in list_tokenizers() if name.startswith("flextok")]
_PICTURES = {"fashion-mnist": fashion_mnist_sample, "shapes": shapes}


def test_there_are_some():
    assert FLEXTOKS


def pictures(model: FlexTok, count: int = 100) -> torch.Tensor:
    source = _PICTURES[model.config.data]("test")
    return fit(source.images[:count], model.side, model.channels)


@pytest.mark.parametrize("name", FLEXTOKS)
def test_the_card_has_the_measured_curve(name):
    record = json.loads((MODELS / name / "curve.json").read_text())
    card = (MODELS / name / "README.md").read_text()
    assert ", ".join(f"{value:.2f}" for value in record["one_step_psnr"].values()) + " dB" in card
    assert f"{record['mean_image_psnr']:.2f} dB" in card
    assert f"first {record['images']:,} test pictures" in card
    assert f"{(MODELS / name / 'model.safetensors').stat().st_size:,} bytes" in card
    numbers = sum(value.numel() for value in load_tokenizer(name).state_dict().values())
    assert f"{numbers:,}, " in card
    assert (MODELS / name / "model.safetensors").stat().st_size <= 6e6


@pytest.mark.parametrize("name", FLEXTOKS)
def test_every_further_token_brings_pictures_closer(name):
    model = load_tokenizer(name)
    assert isinstance(model, FlexTok)
    images = pictures(model)
    found = list(curve(model, images, lengths(model.num_tokens)).values())
    baseline = mean_image_psnr(images, images)
    assert all(b > a for a, b in itertools.pairwise(found)), found
    assert found[0] > baseline + 1
    assert found[-1] > baseline + 6
    recorded = json.loads((MODELS / name / "curve.json").read_text())["one_step_psnr"].values()
    assert found == pytest.approx(list(recorded), abs=0.8)


@pytest.mark.parametrize("name", FLEXTOKS)
@torch.no_grad()
def test_pictures_drawn_in_steps_are_of_the_ones_that_were_written(name):
    model = load_tokenizer(name)
    images = pictures(model, 16)
    drawn = model.decode(model.encode(images), steps=8, generator=torch.Generator().manual_seed(0))
    clean = model.prepare(images)
    assert (psnr(drawn, clean) > psnr(drawn, clean.roll(1, 0)) + 3).float().mean() > 0.8


def test_the_card_of_karl_has_what_was_measured():
    record = json.loads((MODELS / "karl-shapes" / "curve.json").read_text())
    card = (MODELS / "karl-shapes" / "README.md").read_text()
    errors, tokens = ([record[f"{what}_at_{q}"] for q in ("0.05", "0.07", "0.1")] for what in ("error", "tokens"))
    assert f"**{', '.join(f'{e:.4f}' for e in errors)}** with {', '.join(f'{t:.1f}' for t in tokens)} tokens" in card
    assert f"(0.03) | {record['error_at_0.03']:.4f} with {record['tokens_at_0.03']:.1f} tokens" in card
    assert f"at 0.05 | {record['correlation_with_labels']:.2f} |" in card
    came = dict(zip(GRID, json.loads((MODELS / "karl-shapes" / "config.json").read_text())["reached"], strict=True))
    assert f"came out with {came[0.07]:.4f} where 0.07 went in, and with {came[0.1]:.4f} for 0.1" in card
    assert f"runs from {min(came.values()):.3f} to {max(came.values()):.2f}" in " ".join(card.split())
    file = MODELS / "karl-shapes" / "model.safetensors"
    numbers = sum(value.numel() for value in load_tokenizer("karl-shapes").state_dict().values())
    assert f"{numbers:,}, {file.stat().st_size:,} bytes" in card


@torch.no_grad()
def test_karl_meets_the_requested_error_and_writes_more_for_more_shapes():
    model, source = load_tokenizer("karl-shapes"), shapes("test")
    images, labels = source.images[:200], source.labels[:200].float()
    found = {}
    for request in (0.05, 0.07, 0.1):
        codes = model.encode(images, quality=request)
        errors = pixel_error(model.decode(codes), model.prepare(images))
        assert errors.mean() == pytest.approx(request, rel=0.2)
        assert errors[labels == 0].mean() < request < errors[labels == 7].mean(), "met on average, not for each"
        found[request] = (codes != PAD).sum(1)
        assert torch.equal(found[request], model.tokens_for(images, request))
        assert torch.corrcoef(torch.stack([found[request].float(), labels]))[0, 1] > 0.5
    means = [counts.float().mean() for counts in found.values()]
    assert means[0] > means[1] > means[2], "a larger error needs fewer tokens"


def test_the_card_of_the_prior_has_what_was_measured():
    record = json.loads((MODELS / "prior-fmnist" / "bits.json").read_text())
    card = (MODELS / "prior-fmnist" / "README.md").read_text()
    assert f"**{record['test_bits_per_token']:.2f}** with the class" in card
    assert f"{record['test_bits_per_token_without_class']:.2f} without" in card
    assert f"{record['recognised']:.1f} % of 500" in card
    assert (
        f"{record['recognised_test_pictures']:.1f} %\n" in card
        or f"{record['recognised_test_pictures']:.1f} % |" in card
    )
    file = MODELS / "prior-fmnist" / "model.safetensors"
    numbers = sum(value.numel() for value in load_prior("prior-fmnist").state_dict().values())
    assert f"{numbers:,}, {file.stat().st_size:,} bytes" in card
    assert file.stat().st_size <= 4e6


@torch.no_grad()
def test_the_prior_draws_rows_of_the_class_that_is_asked_for():
    prior, tokenizer, source = (
        load_prior("prior-fmnist"),
        load_tokenizer("flextok-fmnist"),
        fashion_mnist_sample("test"),
    )
    codes = tokenizer.encode(fit(source.images[:200], tokenizer.side, tokenizer.channels))
    own, others = bits(prior, codes, source.labels[:200]), bits(prior, codes, (source.labels[:200] + 5) % 10)
    assert own < 4.5
    assert own < others - 0.5
    drawn = prior.generate(torch.arange(10), guidance=1.5, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([drawn, prior.generate(torch.arange(10), generator=torch.Generator().manual_seed(1))])
    classes = torch.arange(10).repeat(2)
    likely = torch.tensor([[bits(prior, row[None], torch.tensor([c])) for c in range(10)] for row in rows])
    assert (likely.argmin(1) == classes).float().mean() > 0.6


@pytest.mark.parametrize("name", [*FLEXTOKS, "karl-shapes", "prior-fmnist"])
def test_the_recipe_of_the_card_is_there(name):
    card = (MODELS / name / "README.md").read_text()
    [recipe] = re.findall(r"tokred train (configs/train/\S+\.yaml)", card)
    assert (MODELS.parent / recipe).is_file() or (shipped_folder("configs/train") / recipe.split("/")[-1]).is_file()
