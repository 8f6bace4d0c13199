"""Learn which rows of codes there are, for every class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tokred.data import load_dataset
from tokred.data.square import fit
from tokred.errors import ConfigError
from tokred.evaluate.features import Features
from tokred.evaluate.probe import LinearProbe
from tokred.tokenizer_assets import load_prior, load_tokenizer, save_tokenizer
from tokred.tokenizers.base import Tokenizer, lengths
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.prior import Prior, PriorConfig
from tokred.train.config import PriorTraining
from tokred.train.pictures import Pictures

Batch = tuple[Tensor, Tensor]
DRAWN = 50
"""Pictures of every class that are drawn to be looked at."""
GUIDANCE = 1.5
_LEARNED_FROM = 2000  # training pictures that the probe sees


class PriorTask:
    """Cross-entropy of every id given the class and the ids before it; the class is left out now and then.

    All pictures are encoded once, as they are and mirrored where the recipe says so.
    """

    def __init__(self, spec: PriorTraining, seed: int = 0):
        self.spec = spec
        self.tokenizer = load_tokenizer(spec.tokenizer)
        pictures = Pictures(spec.data, self.tokenizer.side, self.tokenizer.channels, holdout=spec.holdout, seed=seed)
        if pictures.folder is not None:
            raise ConfigError(f"{spec.data}: the prior needs a data set held in memory, as fashion-mnist is.")
        views = [pictures.images, pictures.images.flip(-1)] if spec.flip else [pictures.images]
        self.codes = torch.stack([_encode(self.tokenizer, view) for view in views])  # [V, N, K]
        self.labels, self.held_labels = pictures.labels, pictures.held_labels
        self.held = _encode(self.tokenizer, pictures.held)
        torch.manual_seed(seed)
        config = PriorConfig(
            tokenizer=spec.tokenizer,
            vocabulary=self.tokenizer.vocabulary,
            tokens=self.tokenizer.num_tokens,
            classes=pictures.classes,
            width=spec.width,
            depth=spec.depth,
            head_width=spec.head_width,
            class_dropout=spec.class_dropout,
        )
        self.model = Prior(config).to("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return self.codes.shape[1]

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """There is nothing to set."""
        if settings:
            raise ConfigError(f"prior has no stage setting {next(iter(settings))!r}.")

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch of codes [B, K] and labels [B]."""
        order = torch.randperm(self.examples, generator=generator)
        for pick in order[: len(order) // batch_size * batch_size].split(batch_size):
            view = torch.randint(len(self.codes), (len(pick),), generator=generator)
            yield self.codes[view, pick], self.labels[pick]

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of an id."""
        codes, labels = (x.to(self.model.positions.device) for x in batch)
        dropped = torch.rand(len(labels), device=labels.device) < self.spec.class_dropout
        logits = self.model(labels.masked_fill(dropped, self.model.no_class), codes)
        return cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the bits of an id of the held-out pictures."""
        return {"bits_per_token": bits(model, self.held, self.held_labels)}

    def draw(self, model: nn.Module) -> Tensor:
        """Return a grid [R, P, C, H, W]: a picture for each of eight classes, drawn from 1, 2, 4, ... of its ids."""
        assert isinstance(model, Prior)
        device = model.positions.device
        classes = torch.arange(8, device=device) % len(model.config.classes)
        chance = torch.Generator(device).manual_seed(0)
        codes = model.generate(classes, guidance=GUIDANCE, generator=chance).cpu()
        if not isinstance(self.tokenizer, FlexTok):
            return self.tokenizer.decode(codes)[None]
        noise = self.tokenizer.draw_noise(len(codes), torch.Generator().manual_seed(0))
        drawn = [self.tokenizer.decode(codes[:, :k], steps=8, noise=noise) for k in lengths(codes.shape[1])]
        return torch.stack(drawn)

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the prior in half precision and return what that file does.

        Returns:
            Bits of an id of the test set, with the class and without; and in how many per cent of pictures drawn from
            its rows, and from those of test pictures, a linear probe sees their class.
        """
        assert isinstance(model, Prior)
        save_tokenizer(model, folder)
        source: Any = load_dataset(self.spec.data, "test")
        codes = _encode(self.tokenizer, fit(source.images, self.tokenizer.side, self.tokenizer.channels))
        prior, labels = load_prior(folder), source.labels
        classes = torch.arange(prior.no_class).repeat_interleave(DRAWN)
        drawn = prior.generate(classes, guidance=GUIDANCE, generator=torch.Generator().manual_seed(0))
        learned, some = self._look(self.codes[0, :_LEARNED_FROM]), len(classes)
        probe = LinearProbe(learned, self.labels[:_LEARNED_FROM])
        measured = {
            "test_bits_per_token": bits(prior, codes, labels),
            "test_bits_per_token_without_class": bits(prior, codes, torch.full_like(labels, prior.no_class)),
            "recognised": probe.accuracy(self._look(drawn), classes),
            "recognised_test_pictures": probe.accuracy(self._look(codes[:some]), labels[:some]),
        }
        (folder / "bits.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        return measured

    @torch.no_grad()
    def _look(self, codes: Tensor) -> Tensor:
        """Features [N, D] of the pictures that codes [N, K] are decoded to."""
        chance, network = torch.Generator().manual_seed(0), Features().eval()
        return torch.cat([network(self.tokenizer.decode(part, generator=chance)) for part in codes.split(250)])


def _encode(tokenizer: Tokenizer, images: Tensor, batch_size: int = 250) -> Tensor:
    return torch.cat([tokenizer.encode(part).cpu() for part in images.split(batch_size)])


@torch.no_grad()
def bits(model: nn.Module, codes: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """Return the mean bits of an id of codes [N, K]."""
    device = next(model.parameters()).device
    total = 0.0
    for part, label in zip(codes.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(label.to(device), part.to(device)).flatten(0, 1).float()
        total += float(cross_entropy(logits, part.to(device).flatten(), reduction="sum"))
    return total / codes.numel() / float(torch.log(torch.tensor(2.0)))
