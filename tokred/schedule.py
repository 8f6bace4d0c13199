"""How many tokens stay, layer by layer, as data: laws that make schedules, files that hold them, budgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tokred.cost import Cost
from tokred.errors import BudgetError, ConfigError, DataError, ScheduleMismatchError
from tokred.folders import shipped_folder

Removal = int | tuple[int, float] | Sequence[int]


@dataclass(frozen=True)
class Schedule:
    """Tokens that stay after every layer, prefix tokens included, for one or more named tracks.

    A method with one decision a layer has one track ("merge" or "prune"); DiffRate has both. A count above the number
    of tokens that are there changes nothing, so lists need not fall.

    Attributes:
        tracks: name of the track -> one count a layer.
        name: how files and tables call it.
        source: where the numbers come from.
        model: the model that they were made for.
        num_tokens: tokens that enter its first block.
        fingerprint: :attr:`tokred.ModelShape.fingerprint` of the only model that it may be used with; "": of any.
    """

    tracks: Mapping[str, tuple[int, ...]]
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)
    model: str = field(default="", compare=False)
    num_tokens: int | None = field(default=None, compare=False)
    fingerprint: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        tracks = {name: tuple(int(n) for n in counts) for name, counts in self.tracks.items()}
        object.__setattr__(self, "tracks", tracks)
        depths = {name: len(counts) for name, counts in tracks.items()}
        if not tracks or len(set(depths.values())) != 1:
            raise ScheduleMismatchError(
                f"Tracks of one schedule need the same, non-zero number of layers; found {depths}."
            )
        for name, counts in tracks.items():
            if min(counts) < 1:
                raise ScheduleMismatchError(
                    f"Track {name!r} keeps {min(counts)} tokens in a layer; at least 1 must stay."
                )

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.tracks.items())))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(next(iter(self.tracks.values())))

    def stay(self, layer: int) -> dict[str, int]:
        """Counts of all tracks for one layer."""
        return {name: counts[layer] for name, counts in self.tracks.items()}

    def tokens(self, num_tokens: int) -> tuple[int, ...]:
        """Tokens that leave every layer when ``num_tokens`` enter the first: the running minimum over all tracks."""
        counts = []
        for layer in range(self.depth):
            num_tokens = min(num_tokens, *self.stay(layer).values())
            counts.append(num_tokens)
        return tuple(counts)

    def require(self, depth: int, tracks: Sequence[str], fingerprint: str = "") -> None:
        """Check that the schedule fits a model and a method.

        Raises:
            ScheduleMismatchError: it was learned for another model, was made for another depth or has other tracks.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            raise ScheduleMismatchError(
                f"Schedule {self.name or 'without a name'} was learned for {self.model or 'another model'} "
                f"({self.fingerprint}); this model has {fingerprint or 'no fingerprint'}. Learn one for it with tokred "
                "learn, or take the line 'fingerprint' out of the file to use it all the same."
            )
        if self.depth != depth:
            made_for = f" (made for {self.model})" if self.model else ""
            raise ScheduleMismatchError(
                f"Schedule {self.name or 'without a name'}{made_for} has {self.depth} layers, the model has {depth} "
                "blocks. Use a schedule of that depth, or give the method a budget instead."
            )
        if set(self.tracks) != set(tracks):
            raise ScheduleMismatchError(
                f"Schedule {self.name or 'without a name'} has the tracks {sorted(self.tracks)}, "
                f"the method needs {sorted(tracks)}."
            )

    def save(self, path: str | Path) -> None:
        """Write the schedule as YAML."""
        text = [f"{key}: {value}\n" for key, value in self._header().items()]
        text.append("tracks:\n")
        text += [f"  {name}: [{', '.join(map(str, counts))}]\n" for name, counts in self.tracks.items()]
        Path(path).write_text("".join(text))

    @classmethod
    def load(cls, name: str | Path) -> Schedule:
        """Read a schedule from a YAML file, or a shipped one by name (``deit_small_2.9g``).

        Raises:
            DataError: there is no such file or name.
            ConfigError: the file has unknown keys or is not a schedule.
        """
        path = Path(name)
        if not path.is_file():
            known = {p.stem: p for p in sorted(shipped_folder("configs/schedules").glob("*.yaml"))}
            if str(name) not in known:
                near = get_close_matches(str(name), known, n=3) or list(known)[:5]
                raise DataError(f"No schedule file or shipped schedule {str(name)!r}. Near: {', '.join(near)}.")
            path = known[str(name)]
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or not isinstance(content.get("tracks"), dict):
            raise ConfigError(f"{path}: a schedule is a mapping with the key 'tracks'.")
        known_keys = ["name", "source", "model", "num_tokens", "fingerprint", "tracks"]
        for key in content:
            if key not in known_keys:
                near = get_close_matches(str(key), known_keys, n=1, cutoff=0)
                raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near[0]!r}?")
        return cls(**{"name": path.stem, **content})

    def _header(self) -> dict[str, Any]:
        names = ("name", "source", "model", "num_tokens", "fingerprint")
        entries = {name: getattr(self, name) for name in names}
        return {key: yaml.safe_dump(v).replace("\n...", "").strip() for key, v in entries.items() if v}

    @staticmethod
    def solve(budget: Budget | str, at: Callable[[float], Schedule], cost_of: Callable[[Schedule], Cost]) -> Schedule:
        """Find the gentlest schedule of a family that meets a budget.

        Args:
            budget: such as ``"2.9 GMACs"``, ``"60%"`` or ``"96 tokens"``.
            at: the family: maps a strength in (0, 1], 1 for no reduction, to a schedule.
            cost_of: the cost of a schedule.

        Raises:
            BudgetError: even the strongest schedule of the family costs more.
        """
        wanted = Budget.parse(budget) if isinstance(budget, str) else budget
        limit = wanted.limit(cost_of(at(1.0)))
        if wanted.measure(cost_of(at(1.0))) <= limit:
            return at(1.0)
        low, high = 1e-6, 1.0
        least = wanted.measure(cost_of(at(low)))
        if least > limit:
            raise BudgetError(
                f"{budget} is out of reach: the strongest schedule of this method needs {wanted.show(least)}."
            )
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if wanted.measure(cost_of(at(middle))) <= limit else (low, middle)
        return at(low)


@dataclass(frozen=True)
class Budget:
    """What a model may cost: ``amount`` in ``unit`` ("MACs", "share" of the unpatched MACs, or "tokens" at the end)."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"2.9 GMACs"``, ``"350 MMACs"``, ``"60%"`` or ``"96 tokens"``.

        Raises:
            BudgetError: the text is none of these.
        """
        match = re.fullmatch(r"\s*([0-9.]+)\s*(%|[A-Za-z]+)\s*", str(text))
        factors = {"gmacs": 1e9, "mmacs": 1e6, "tmacs": 1e12, "macs": 1.0}
        unit = match.group(2).lower() if match else ""
        if match and unit in factors:
            return cls(float(match.group(1)) * factors[unit], "MACs")
        if match and unit == "%" and 0 < float(match.group(1)) <= 100:
            return cls(float(match.group(1)) / 100, "share")
        if match and unit in {"token", "tokens"}:
            return cls(float(match.group(1)), "tokens")
        hint = " One MAC is two FLOPs; say which you mean by giving MACs." if "flop" in unit else ""
        raise BudgetError(f"Cannot read the budget {text!r}; write '2.9 GMACs', '60%' or '96 tokens'.{hint}")

    def limit(self, unreduced: Cost) -> float:
        """The highest value of :meth:`measure` that is within the budget."""
        return self.amount * unreduced.macs if self.unit == "share" else self.amount

    def measure(self, cost: Cost) -> float:
        """What the budget counts: MACs, or the tokens that leave the last layer."""
        return cost.tokens_per_layer[-1] if self.unit == "tokens" else cost.macs

    def show(self, value: float) -> str:
        """Print a measured value in the budget's unit."""
        return f"{value:.0f} tokens" if self.unit == "tokens" else f"{value / 1e9:.3f} GMACs"


def removals(r: Removal, depth: int) -> tuple[int, ...]:
    """Tokens to remove in every layer (ToMe, arXiv 2210.09461, section 3 and its appendix on schedules).

    Args:
        r: one number for every layer; a list, padded with zeros; or a pair (r, inflection) with inflection in [-1, 1]:
            -1 starts at ``2 r`` and falls to 0, 1 does the reverse, 0 is constant. The fractional parts are cut off.
        depth: number of layers.

    Raises:
        ValueError: a negative number or an inflection outside [-1, 1].
    """
    if isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        amount, inflection = r
        if amount < 0 or not -1 <= inflection <= 1:
            raise ValueError(f"r={r}: the first number must not be negative, the inflection must lie in [-1, 1].")
        low = int(amount * (1.0 - inflection))
        step = (2 * amount - low - low) / (depth - 1) if depth > 1 else 0.0
        return tuple(int(low + step * layer) for layer in range(depth))
    if isinstance(r, Sequence):
        if len(r) > depth:
            raise ScheduleMismatchError(f"r lists {len(r)} layers, the model has {depth} blocks.")
        counts = (*(int(n) for n in r), *[0] * (depth - len(r)))
    else:
        counts = (int(r),) * depth
    if min(counts) < 0:
        raise ValueError(f"r={r}: cannot remove a negative number of tokens; 0 removes none.")
    return counts


def share_of(keep: float | int, patches: int) -> float:
    """Read ``keep`` as a share of ``patches``: an int is a number of tokens, a float in (0, 1] a share.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise ValueError(f"keep={keep!r}: give a number of tokens (int) or a share in (0, 1] (float).")
    if isinstance(keep, int):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 token must stay.")
        return min(keep / patches, 1.0)
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep={keep}: a share must lie in (0, 1]; write an int for a number of tokens.")
    return keep
