"""What a method does to a model, what that is worth on paper, and what it is worth on this machine."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokred.adapters import find_tower
from tokred.bench.timing import Comparison, compare
from tokred.cost import Cost, cost
from tokred.errors import UnsupportedModelError
from tokred.methods import Method
from tokred.patching import patch, unwrap
from tokred.shape import ModelShape


@dataclass(frozen=True)
class Explanation:
    """A method on a model.

    Attributes:
        method: with its knobs.
        tower: class of the module that is patched.
        adapter: which family knows it.
        shape: the model's sizes.
        before: cost of the unpatched model.
        after: cost of the patched one; for a method that decides for every image, the most that it may cost.
        measured: interleaved timing, unpatched first; ``None`` if nothing was run.
        batch_size: of the timing.
        device: of the timing.
    """

    method: Method
    tower: str
    adapter: str
    shape: ModelShape
    before: Cost
    after: Cost
    measured: Comparison | None
    batch_size: int
    device: str

    @property
    def ideal(self) -> float:
        """Speed-up if time were MACs and deciding were free."""
        return ideal_speedup(self.before, self.after)

    @property
    def speedup(self) -> float | None:
        """Measured speed-up."""
        return None if self.measured is None else self.measured.ratio

    @property
    def pays(self) -> bool | None:
        """Whether the patched model is clearly faster; ``None`` if nothing was measured and the counts do not say."""
        if self.ideal < 1.02:
            return False
        return None if self.measured is None else self.measured.ratio >= 1.02 and self.measured.quartiles[0] > 1.0

    @property
    def verdict(self) -> str:
        """One plain sentence: does it pay?"""
        where = f"at batch size {self.batch_size} on {self.device}"
        if self.after.tokens_per_layer[-1] >= self.shape.num_tokens:
            return "Will not pay: this setting removes no tokens."
        if self.ideal < 1.02:
            return (
                f"Will not pay: only {1 - 1 / self.ideal:.1%} of the MACs are saved; reduce more, or in earlier layers."
            )
        if self.measured is None:
            return (
                f"Not measured. On paper {self.ideal:.2f}x at most; run without --no-measure to see what stays of it."
            )
        ratio, (low, high) = self.measured.ratio, self.measured.quartiles
        advice = "Try a larger batch, a larger input or a stronger reduction."
        if ratio < 1.0:
            return f"Will not pay {where}: the patched model runs at {ratio:.2f}x of the unpatched speed. {advice}"
        if not self.pays:
            return (
                f"Hardly pays {where}: {ratio:.2f}x (middle half {low:.2f} to {high:.2f}) is within the noise. {advice}"
            )
        share = ratio / self.ideal
        rest = "" if share >= 0.8 else f" The rest is lost to overheads. {advice}"
        return f"Pays {where}: {ratio:.2f}x, {share:.0%} of the ideal {self.ideal:.2f}x.{rest}"


def explain(
    model: nn.Module,
    method: Method,
    *,
    measure: bool = True,
    batch_size: int = 16,
    rounds: int = 10,
    max_seconds: float | None = 30.0,
) -> Explanation:
    """Look at a method on a model; the model is left alone.

    Args:
        model: any supported model.
        method: what to look at.
        measure: run it as well, on random images; otherwise only the counts are computed.
        batch_size: images a batch.
        rounds: pairs of timed forward passes, see :func:`tokred.bench.compare`.
        max_seconds: begin no further pair after this time.

    Raises:
        UnsupportedModelError: no adapter fits, or the patch fails its self-check.
    """
    model = unwrap(model)
    tower = find_tower(model)
    device = next(model.parameters()).device
    measured = _measure(model, method, batch_size, rounds, max_seconds) if measure else None
    return Explanation(
        method=method,
        tower=type(tower.module).__name__,
        adapter=tower.family,
        shape=tower.shape,
        before=cost(tower.shape),
        after=method.cost(tower.shape),
        measured=measured,
        batch_size=batch_size,
        device=str(device),
    )


def ideal_speedup(before: Cost, after: Cost) -> float:
    """Ratio of the MACs, where deciding what to reduce costs nothing."""
    return before.macs / (after.macs - after.reduction_macs)


def _measure(model: nn.Module, method: Method, batch_size: int, rounds: int, max_seconds: float | None) -> Comparison:
    plain = copy.deepcopy(model).eval()
    patched = copy.deepcopy(plain)
    patch(patched, method)
    tower, reduced = find_tower(plain), find_tower(patched)
    images = random_batch(tower.example(), batch_size)
    with torch.inference_mode():
        return compare(
            lambda: tower.run(images),
            lambda: reduced.run(images),
            rounds=rounds,
            device=images.device,
            max_seconds=max_seconds,
        )


def random_batch(example: object, batch_size: int) -> Tensor:
    """Random images like the one example that a tower gives."""
    if not isinstance(example, Tensor):
        raise UnsupportedModelError(
            f"The example input is a {type(example).__name__}, not a batch of images; measure it in your own loop."
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *example.shape[1:], generator=generator)
    return images.to(example.device, example.dtype)
