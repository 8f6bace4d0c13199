"""Learn to write pictures as ordered tokens and to draw pictures from the first of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokred.data import load_dataset
from tokred.data.square import fit
from tokred.errors import ConfigError
from tokred.evaluate.reconstruction import curve, mean_image_psnr
from tokred.tokenizer_assets import load_tokenizer, save_tokenizer
from tokred.tokenizers.base import lengths
from tokred.tokenizers.flextok.dropout import draw_keep
from tokred.tokenizers.flextok.flow import mix, velocity_target
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.flextok.times import draw_times
from tokred.train.config import FlexTokTraining
from tokred.train.pictures import Pictures

SHOWN = 8  # pictures in a grid of samples


class FlexTokTask:
    """Rectified flow on pictures or latents, told by a random number of the first tokens, sometimes by none.

    A head that predicts the velocity has the mean squared error of it; one that predicts the picture that of the
    picture, divided by the time. Stage settings: ``full_length``, where not as in the rest of the recipe.
    """

    def __init__(self, spec: FlexTokTraining, seed: int = 0):
        self.spec = spec
        torch.manual_seed(seed)
        self.model = FlexTok(spec.model).to("cuda" if torch.cuda.is_available() else "cpu")
        if self.model.vae is not None:
            if spec.autoencoder_from is None:
                raise ConfigError("autoencoder_from: latents need an autoencoder with weights; name its folder.")
            self.model.vae.load(spec.autoencoder_from)
        self.pictures = Pictures(
            spec.data, self.model.side, self.model.channels,
            holdout=spec.holdout, seed=seed, flip=spec.flip, shift=spec.shift, workers=spec.workers,
        )  # fmt: skip
        self.full_length = spec.full_length
        if spec.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return len(self.pictures)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Set what the stage changes; what it does not name goes back to the recipe."""
        for name in settings:
            if name != "full_length":
                raise ConfigError(f"flextok has no stage setting {name!r}. It has: full_length.")
        self.full_length = bool(settings.get("full_length", self.spec.full_length))

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield one epoch of varied pictures [B, C, H, W]."""
        return (images for images, _ in self.pictures.batches(batch_size, generator))

    def loss(self, batch: Tensor) -> Tensor:
        """Return the loss of the flow at one random time for every picture."""
        model, spec = self.model, self.spec
        B, K = len(batch), model.num_tokens
        keep = torch.full((B,), K) if self.full_length else draw_keep(spec.model.keep_law, K, B)
        drop = torch.rand(B) < spec.model.null_probability
        t = draw_times(spec.time_law, B, scale=spec.time_scale)
        keep, drop, t, clean = (x.to(model.device, non_blocking=True) for x in (keep, drop, t, batch))
        with torch.no_grad():
            clean = model.to_latents(clean)
        codes, _ = model.fsq(model.encoder(clean))
        noise = torch.randn_like(clean)
        said = model.decoder(mix(clean, noise, t), t, model.decoder.condition(codes, keep, drop)).float()
        if spec.model.prediction == "velocity":
            return (said - velocity_target(clean, noise)).square().mean()
        return ((said - clean).square().flatten(1).mean(1) / t.clamp(min=spec.earliest)).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the PSNR of one look at noise for several numbers of tokens, on the held-out pictures."""
        assert isinstance(model, FlexTok)
        held = self.pictures.held
        return {f"psnr_k{k}": value for k, value in curve(model, held, lengths(model.num_tokens)).items()}

    def draw(self, model: nn.Module) -> Tensor:
        """Return a grid [R, P, C, H, W]: held-out pictures, then what 1, 2, 4, ... of their tokens draw in 8 steps."""
        assert isinstance(model, FlexTok)
        held = self.pictures.held[:SHOWN]
        noise = model.draw_noise(len(held), torch.Generator().manual_seed(0))
        codes = model.encode(held)
        rows = [model.decode(codes[:, :k], steps=8, noise=noise).cpu() for k in lengths(model.num_tokens)]
        return torch.stack([held.float() / 127.5 - 1, *rows])

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the tokenizer in half precision and return the PSNR of that file on the test set, by tokens."""
        assert isinstance(model, FlexTok)
        model.config = model.config.model_copy(update={"data": self.spec.data})
        save_tokenizer(model, folder)
        finished = load_tokenizer(folder)
        assert isinstance(finished, FlexTok)
        images = _test_pictures(self.spec.data, finished)
        measured = curve(finished, images, lengths(finished.num_tokens))
        record = {
            "images": len(images),
            "one_step_psnr": {str(k): value for k, value in measured.items()},
            "mean_image_psnr": mean_image_psnr(self.pictures.held, images),
        }
        (folder / "curve.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return {f"psnr_k{k}": value for k, value in measured.items()}


def _test_pictures(data: str, model: FlexTok, most: int = 1000) -> Tensor:
    """The first test pictures, as bytes of the model's size."""
    source: Any = load_dataset(data, "test")
    return fit(source.images[:most], model.side, model.channels)
