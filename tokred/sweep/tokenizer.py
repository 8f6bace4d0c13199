"""Points of image tokenizers: how near pictures are to the originals, for how many bits, at which speed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from tokred.bench.timing import compare
from tokred.data import Batches, load_dataset
from tokred.data.square import Square
from tokred.errors import ConfigError, DataError
from tokred.evaluate.features import Features, feature_distance
from tokred.evaluate.probe import LinearProbe
from tokred.evaluate.reconstruction import frechet_distance, psnr, ssim
from tokred.sweep.point import Point, Settings
from tokred.tokenizer_assets import load_tokenizer
from tokred.tokenizers.base import PAD, Tokenizer, pixel_error, to_bytes

LENGTH = "length"  # the one method: how many tokens a picture gets
KNOBS = ("tokens", "quality", "steps", "guidance")
SHOWN = 8  # pictures in a strip
_LEARNED_FROM = 2000  # training pictures that the probe sees
_SHARE_OF_TIMING = 0.4  # of a point's progress


class TokenizerSubject:
    """One tokenizer with pictures, ready to run."""

    def __init__(self, model: Tokenizer, pictures: Batches, learned_from: Batches, settings: Settings) -> None:
        self.model = model.to(settings.device, getattr(torch, settings.dtype)).eval()
        self.batch_size = settings.batch_size
        self.images, self.labels = _read(pictures)
        self.skipped = tuple(str(file) for file in pictures.skipped)
        self._learned_from = learned_from

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> TokenizerSubject:
        """Load a tokenizer and the pictures that a sweep asks for, square and of its size.

        Raises:
            DataError: one of them cannot be had, or there are no pictures.
        """
        tokenizer = load_tokenizer(model)
        square = Square(tokenizer.side, tokenizer.channels)

        def some(split: str, most: int | None) -> Batches:
            source: Any = load_dataset(data, split, square, strict=split == "train")
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(settings.seed))
            return Batches(Subset(source, order[:most].sort().values.tolist()), settings.batch_size, workers=workers)

        return cls(tokenizer, some(settings.split, settings.images), some("train", _LEARNED_FROM), settings)

    @cached_property
    def network(self) -> Features:
        """What features are made by."""
        return Features().eval()

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """Features [N, D] and tokens [N, T, D] of the originals."""
        return self.look(self.originals)

    @cached_property
    def probe(self) -> LinearProbe:
        """Classes read from the features of training pictures."""
        images, labels = _read(self._learned_from)
        return LinearProbe(self.look(images.float() / 127.5 - 1)[0], labels)

    @cached_property
    def originals(self) -> Tensor:
        """The pictures in [-1, 1]."""
        return self.images.float() / 127.5 - 1

    @torch.no_grad()
    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and tokens [N, T, D] of pictures in [-1, 1]."""
        parts = pictures.split(self.batch_size)
        return torch.cat([self.network(part) for part in parts]), torch.cat([self.network.patches(p) for p in parts])


def check_length(method: str, knobs: Mapping[str, Any]) -> None:
    """Say what is wrong with a method for tokenizers.

    Raises:
        ConfigError: another method, or unknown knobs.
    """
    if method != LENGTH:
        raise ConfigError(f"{method!r} is no method for tokenizers; there is one: {LENGTH!r}, which sets {_known()}.")
    for name in knobs:
        if name not in KNOBS:
            raise ConfigError(f"{LENGTH} has no knob {name!r}. It has: {_known()}.")


def foresee_tokenizer(model: str) -> Callable[[Point], str]:
    """Say what points would write, from the configuration alone where the tokenizer is one of ours."""

    def outlook(point: Point) -> str:
        tokens = point.knobs.get("tokens")
        if point.knobs.get("quality") is not None:
            return "as many tokens as the pictures need"
        return f"{tokens} tokens a picture" if tokens else "as many tokens as it writes by itself"

    return outlook


def measure_tokenizer(
    point: Point, subject: TokenizerSubject, report: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Everything that is measured about a number of tokens, as columns of the results.

    ``psnr`` and ``pixel_error`` are those of the estimate, which is the nearest that the tokens allow; all else looks
    at pictures as they are decoded.

    Args:
        point: what to measure; the one without a method writes all tokens.
        subject: its tokenizer and pictures.
        report: called with the share that is done.
    """
    writing = {name: point.knobs[name] for name in ("tokens", "quality") if name in point.knobs}
    drawing = {name: point.knobs[name] for name in ("steps", "guidance") if name in point.knobs}
    model, seed = subject.model, point.settings.seed
    if unknown := sorted(drawing.keys() - model.decode_knobs):
        raise ConfigError(f"{type(model).__name__} draws at once; it has no {' and no '.join(unknown)}.")
    codes, near, drawn = [], [], []
    parts = subject.images.split(subject.batch_size)
    for index, part in enumerate(parts):
        codes.append(model.encode(part, **writing))
        near.append(model.estimate(codes[-1]).float().cpu())
        drawn.append(_draw(model, codes[-1], drawing, seed + index).float().cpu().clamp(-1, 1))
        report((1 - _SHARE_OF_TIMING) * (index + 1) / len(parts))
    tokens = torch.cat([(part != PAD).sum(1) for part in codes]).double()
    pictures, estimates, originals = torch.cat(drawn), torch.cat(near), subject.originals
    features, patches = subject.look(pictures)
    return {
        "images": len(pictures),
        "skipped": len(subject.skipped),
        "skipped_files": list(subject.skipped),
        "tokens": tokens.mean().item(),
        "bits": tokens.mean().item() * model.bits_per_token,
        "psnr": psnr(estimates, originals).mean().item(),
        "pixel_error": pixel_error(estimates, originals).mean().item(),
        "psnr_drawn": psnr(pictures, originals).mean().item(),
        "ssim": ssim(pictures, originals).mean().item(),
        "feature_distance": feature_distance(patches, subject.seen[1]).mean().item(),
        "frechet_distance": frechet_distance(subject.seen[0], features),
        "probe_top1": subject.probe.accuracy(features, subject.labels),
        "probe_top1_originals": subject.probe.accuracy(subject.seen[0], subject.labels),
        **_speed_columns(point, subject, writing, drawing, report),
        "strip": _strip(pictures),
        "strip_originals": _strip(originals) if point.method is None else None,
    }


def _speed_columns(
    point: Point,
    subject: TokenizerSubject,
    writing: Mapping[str, Any],
    drawing: Mapping[str, Any],
    report: Callable[[float], None],
) -> dict[str, float]:
    """Speed of the first batch, against writing and drawing all tokens in the same run."""
    model, images = subject.model, subject.images[: subject.batch_size]
    settings, seed = point.settings, point.settings.seed
    codes, every = model.encode(images, **writing), model.encode(images)
    encoding = compare(
        lambda: model.encode(images), lambda: model.encode(images, **writing),
        rounds=settings.rounds, device=settings.device,
    )  # fmt: skip
    report(1 - _SHARE_OF_TIMING / 2)
    decoding = compare(
        lambda: _draw(model, every, drawing, seed), lambda: _draw(model, codes, drawing, seed),
        rounds=settings.rounds, device=settings.device,
    )  # fmt: skip
    return {
        "encode_images_per_second": len(images) / encoding.other.median,
        "encode_speedup": 1.0 if point.method is None else encoding.ratio,
        "decode_images_per_second": len(images) / decoding.other.median,
        "decode_speedup": 1.0 if point.method is None else decoding.ratio,
    }


def _draw(model: Tokenizer, codes: Tensor, drawing: Mapping[str, Any], seed: int) -> Tensor:
    return model.decode(codes, generator=torch.Generator().manual_seed(seed), **drawing)


def _strip(pictures: Tensor) -> bytes:
    """The first pictures beside each other, as a PNG."""
    from PIL import Image

    row = to_bytes(torch.cat(list(pictures[:SHOWN]), dim=-1)).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(row[:, :, 0] if row.shape[-1] == 1 else row).save(file, "PNG")
    return file.getvalue()


def _read(batches: Batches) -> tuple[Tensor, Tensor]:
    """All readable pictures as bytes [N, C, H, W], and their labels [N]."""
    found = list(batches)
    if not found:
        raise DataError(f"None of the pictures can be read; the first: {next(iter(batches.skipped), 'there is none')}.")
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def _known() -> str:
    return ", ".join(KNOBS)
