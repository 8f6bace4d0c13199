"""Learn to say how many tokens a picture needs: what was achieved becomes what is asked for."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokred.data import load_dataset
from tokred.data.square import fit
from tokred.errors import ConfigError
from tokred.tokenizer_assets import load_tokenizer, save_tokenizer
from tokred.tokenizers.base import PAD, pixel_error
from tokred.tokenizers.halting import GRID, grid_index, halting_loss, is_halted, keep_loss
from tokred.tokenizers.karl import KARL
from tokred.train.config import KARLTraining
from tokred.train.pictures import Pictures

_ASKED = 0.04  # first passes ask for errors up to this
_DECAY = 0.99
REQUESTS = (0.03, 0.05, 0.07, 0.1)


class KARLTask:
    """Two passes for every batch, their losses added.

    The first has a random budget of tokens and asks for a small error that was not reached yet; all its tokens must go
    on. The second may use all tokens and asks for the error that the first one had; the tokens behind the first budget
    must halt, and those that do say nothing to the decoder.
    """

    def __init__(self, spec: KARLTraining, seed: int = 0):
        self.spec = spec
        torch.manual_seed(seed)
        config = spec.model
        if spec.budget_step > config.tokens:
            raise ConfigError(f"budget_step: {spec.budget_step} is more than the {config.tokens} tokens of the model.")
        self.model = _Learner(KARL(config)).to("cuda" if torch.cuda.is_available() else "cpu")
        self.pictures = Pictures(
            spec.data, config.side, config.channels,
            holdout=spec.holdout, seed=seed, flip=spec.flip, shift=spec.shift, workers=spec.workers,
        )  # fmt: skip

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return len(self.pictures)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """There is nothing to set."""
        if settings:
            raise ConfigError(f"karl has no stage setting {next(iter(settings))!r}.")

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield one epoch of varied pictures [B, C, H, W]."""
        return (images for images, _ in self.pictures.batches(batch_size, generator))

    def loss(self, batch: Tensor) -> Tensor:
        """Return the losses of both passes: the error of the pictures, of the codebook, and of halting."""
        learner, karl = self.model, self.model.karl
        batch = batch.to(karl.device)
        step, tokens = self.spec.budget_step, karl.num_tokens
        budget = min(tokens, step * int(torch.randint(1, (tokens + step - 1) // step + 1, ())))
        command = learner.draw_commands(len(batch))
        first, error, logits = self._pass(batch, command, budget, halts=False)
        loss = first + self.spec.halting_weight * keep_loss(logits)
        learner.achieved(float(error.mean()))
        second, _, logits = self._pass(batch, grid_index(error, karl.grid), tokens, halts=True)
        return loss + second + self.spec.halting_weight * halting_loss(logits, budget)

    def _pass(self, batch: Tensor, command: Tensor, tokens: int, halts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss but for halting, the error [B] of the pictures, and the halting logits."""
        karl = self.model.karl
        z, logits = karl.read(batch, command, tokens)
        codes, _, codebook = karl.quantizer(z)
        images = karl.draw(codes, is_halted(logits) if halts else None).float()
        return (images - batch).abs().mean() + codebook, pixel_error(images, batch).detach(), logits

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return tokens and error on the held-out pictures at several requested errors."""
        assert isinstance(model, _Learner)
        return measure(model.karl, self.pictures.held)

    def draw(self, model: nn.Module) -> Tensor:
        """Return a grid [R, P, C, H, W]: held-out pictures, then what is drawn at each requested error."""
        assert isinstance(model, _Learner)
        held = self.pictures.held[:8]
        rows = [model.karl.decode(model.karl.encode(held, quality=quality)).cpu() for quality in reversed(REQUESTS)]
        return torch.stack([held.float() / 127.5 - 1, *rows])

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the tokenizer in half precision and return tokens and error of that file on the test set."""
        assert isinstance(model, _Learner)
        karl = model.karl
        found = measure(karl, self.pictures.held, GRID)
        reached = tuple(round(found[f"error_at_{error:g}"], 4) for error in GRID)
        karl.config = karl.config.model_copy(update={"data": self.spec.data, "reached": reached})
        save_tokenizer(karl, folder)
        finished = load_tokenizer(folder)
        assert isinstance(finished, KARL)
        source: Any = load_dataset(self.spec.data, "test")
        images = fit(source.images[:1000], finished.side, finished.channels)
        measured = measure(finished, images)
        measured["correlation_with_labels"] = _correlation(finished, images, source.labels[: len(images)])
        (folder / "curve.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        return measured


class _Learner(nn.Module):
    """The tokenizer with what training has to remember: how likely each error is to be asked for."""

    mass: Tensor
    best: Tensor

    def __init__(self, karl: KARL):
        super().__init__()
        self.karl = karl
        self.register_buffer("mass", (karl.grid <= _ASKED).float())
        self.register_buffer("best", torch.tensor(1.0))

    def draw_commands(self, batch: int) -> Tensor:
        """Return grid indices [B]."""
        return torch.multinomial(self.mass, batch, replacement=True)

    def achieved(self, error: float) -> None:
        """Ask less often for errors that are as large as the best one so far."""
        self.best.clamp_(max=error)
        self.mass.mul_(torch.where(self.karl.grid >= self.best, _DECAY, 1.0)).clamp_(min=1e-6)
        self.mass.mul_(self.karl.grid <= _ASKED)


@torch.no_grad()
def measure(karl: KARL, images: Tensor, requests: Sequence[float] = REQUESTS) -> dict[str, float]:
    """Return the mean number of tokens and the mean error at each of the requested errors."""
    found = {}
    for quality in requests:
        tokens, errors = [], []
        for part in images.split(250):
            codes = karl.encode(part, quality=quality)
            tokens.append((codes != PAD).sum(1))
            errors.append(pixel_error(karl.decode(codes), karl.prepare(part)))
        found[f"tokens_at_{quality:g}"] = float(torch.cat(tokens).float().mean())
        found[f"error_at_{quality:g}"] = float(torch.cat(errors).mean())
    return found


def _correlation(karl: KARL, images: Tensor, labels: Tensor, quality: float = 0.05) -> float:
    """Of the number of tokens with the labels, where these are counts."""
    counts = torch.cat([karl.tokens_for(part, quality) for part in images.split(250)]).float().cpu()
    if counts.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([counts, labels.float()]))[0, 1])
