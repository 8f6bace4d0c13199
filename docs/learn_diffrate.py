"""Writes docs/results/learn_diffrate.json: a learned schedule of DiffRate beside hand-made ones, on all test images.

    python docs/learn_diffrate.py [SCHEDULE ...]

Run it as it is: the schedule is the shipped one, which ``tokred learn diffrate`` wrote as docs/benchmarks.md says;
others that are given are measured, too. No number of the test set had a part in learning. The opponents are chosen on
the test set, in their favour: all hand-made schedules run on its first images, and those that are best there on all.
What stands in the file already is not measured again.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Subset

import tokred
from tokred.assets import load_model
from tokred.bench.machine import device_name, versions
from tokred.data import Batches, load_dataset, transform_for
from tokred.evaluate.classification import top1
from tokred.methods import Method
from tokred.shape import ModelShape

MODEL, DATA, SHARE, LEARNED = "vit-fmnist", "fashion-mnist", 0.6, "vit_fmnist_0.119g"
SCREENED, FINALISTS, BY_HAND, ALSO_LEARNED = 1000, 5, "DiffRate, hand-made", "DiffRate, also learned"
RESULTS = Path(__file__).parent / "results" / "learn_diffrate.json"

Row = dict[str, Any]
Entry = tuple[str, str, Method]

# share of the patches that leaves a block at the depth t in [0, 1]; the first block reduces nothing, as in the paper
FORMS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda t, s: 1 - s * t,
    "early": lambda t, s: 1 - s * t**0.5,
    "late": lambda t, s: 1 - 2 * s * t**2,
    "at once": lambda t, s: 1 - s if t > 0 else 1.0,
    "in three stages": lambda t, s: (1 - s) ** ((t >= 0.25) + (t >= 0.5) + (t >= 0.75)),
}
# which part of what leaves a block there is pruned; the rest is merged
PRUNED: dict[str, Callable[[float], float]] = {
    "prune only": lambda t: 1.0,
    "merge only": lambda t: 0.0,
    "half each": lambda t: 0.5,
    "merge early, prune late": lambda t: t,
}


def hand_made(shape: ModelShape, form: str, split: str, strength: float) -> tokred.Schedule:
    """One of the hand-made schedules of DiffRate."""
    prune, merge, before = [], [], shape.num_tokens
    for layer in range(shape.depth):
        t = layer / (shape.depth - 1)
        after = min(before, shape.num_prefix + max(1, round(shape.num_patches * FORMS[form](t, strength))))
        prune.append(before - round((before - after) * PRUNED[split](t)))
        merge.append(after)
        before = after
    return tokred.Schedule({"prune": tuple(prune), "merge": tuple(merge)})


def solved(shape: ModelShape, form: str, split: str, limit: float) -> tokred.Schedule:
    """The gentlest of a form that costs no more than ``limit``."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        costs = tokred.DiffRate().cost(shape, hand_made(shape, form, split, middle)).macs
        low, high = (middle, high) if costs > limit else (low, middle)
    return hand_made(shape, form, split, high)


def opponents(shape: ModelShape, limit: float) -> Iterator[Entry]:
    """What the learned schedule is compared with, besides hand-made ones; ToMe just above and just below first."""
    costs = [tokred.ToMe(r=r).cost(shape).macs for r in range(shape.num_patches // shape.depth)]
    above = max(r for r, macs in enumerate(costs) if macs > limit)
    yield "ToMe, constant r", f"r={above}", tokred.ToMe(r=above)
    yield "ToMe, constant r", f"r={above + 1}", tokred.ToMe(r=above + 1)
    yield "ToMe, constant fractional r", f"budget={SHARE:.0%}", tokred.ToMe(budget=f"{100 * SHARE:g}%")
    yield "DiffRate, own law", f"budget={SHARE:.0%}", tokred.DiffRate(budget=f"{100 * SHARE:g}%")


class Measured:
    """The results, kept in the file as they come."""

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.model, self.data = model, data
        with tokred.patch(model, tokred.ToMe(r=0)) as handle:
            self.shape, self.whole = handle.tower.shape, handle.cost.macs
        record = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        self.known = [*record.get("results", []), *record.get("screened", [])]

    def __call__(self, entry: Entry, images: int) -> Row:
        """What a method reaches on the first images, and what it costs."""
        group, name, method = entry
        schedule = method.plan(self.shape)
        cost = method.cost(self.shape, schedule)
        tracks = {track: list(counts) for track, counts in schedule.tracks.items()}
        row = {"group": group, "name": name, "gmacs": cost.gmacs, "share": cost.macs / self.whole, "images": images}
        row |= {"tracks": tracks}
        for known in self.known:
            if row.items() <= known.items():
                return known
        with tokred.patch(self.model, method):
            row["top1"] = top1(self.model, Batches(Subset(self.data, range(images)), 50)).top1
        self.known.append(row)
        finished = [r for r in self.known if r["images"] > SCREENED]
        self.write(results=finished, screened=[r for r in self.known if r["images"] == SCREENED])
        return row

    def write(self, **rows: list[Row]) -> None:
        """Write the file."""
        record = {"model": MODEL, "data": DATA, "split": "test", "limit_gmacs": SHARE * self.whole / 1e9}
        record |= {"device": device_name("cpu"), "dtype": "float32", "versions": versions()}
        RESULTS.write_text(json.dumps(record | rows, indent=1) + "\n")


def main() -> None:
    """Measure everything."""
    model = load_model(MODEL)
    data = load_dataset(DATA, "test", transform_for(model))
    measured, images = Measured(model, data), len(data)  # type: ignore[arg-type]
    shape, limit = measured.shape, SHARE * measured.whole
    by_hand: list[Entry] = [
        (BY_HAND, f"{form}, {split}", tokred.DiffRate(schedule=solved(shape, form, split, limit)))
        for form in FORMS
        for split in PRUNED
    ]
    screened = [measured(entry, SCREENED) for entry in by_hand]
    best = sorted(range(len(by_hand)), key=lambda i: -screened[i]["top1"])[:FINALISTS]
    over, under, *rows = [measured(entry, images) for entry in opponents(shape, limit)]
    rows = [over, under, *rows, *(measured(by_hand[i], images) for i in best)]
    part = (limit / 1e9 - under["gmacs"]) / (over["gmacs"] - under["gmacs"])
    between = {"group": "ToMe, constant r", "name": "interpolated", "gmacs": limit / 1e9, "share": SHARE}
    rows.append({**between, "images": images, "top1": under["top1"] + part * (over["top1"] - under["top1"])})
    for path in sys.argv[1:]:
        measured((ALSO_LEARNED, Path(path).stem, tokred.DiffRate(schedule=path)), images)
    rows += [row for row in measured.known if row["group"] == ALSO_LEARNED]
    rows.append(measured(("DiffRate, learned", LEARNED, tokred.DiffRate(schedule=LEARNED)), images))
    measured.write(results=rows, screened=screened)


if __name__ == "__main__":
    main()
