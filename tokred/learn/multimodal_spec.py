"""What a search between the layers of a language model is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, get_args

from tokred.errors import ConfigError
from tokred.learn.rates import RATE_SPACES
from tokred.methods import methods
from tokred.sweep.axes import Axis
from tokred.sweep.spec import DType

PREFILL = Axis("gmacs", "GMACs of the language model per prompt", False)
EXACT_MATCH = Axis("exact_match", "answers that are right, word for word (%)", True)
SAME_ANSWERS = Axis("agreement", "answers like those of the unpatched model (%)", True)
MULTIMODAL_QUALITIES = {axis.column: axis for axis in (EXACT_MATCH, SAME_ANSWERS)}
SEARCHED = ("p_sigmoid",)
_ANYHOW = ("batch_size", "threads", "device")  # what does not matter for the results


@dataclass(frozen=True)
class MultimodalSpec:
    """A search for the knobs of a method between the layers of a language model.

    Attributes:
        model: name of a shipped multimodal model, folder, or id of the hub.
        method: name of the method.
        data: name of a set of questions, or a JSONL file.
        space: "sigmoid" or "rates", see :data:`tokred.learn.RATE_SPACES`.
        quality: "exact_match", or "agreement" with the unpatched answers, for which the right ones do not matter.
        budget_low: the smallest mean number of visual tokens over the layers, such as "5%" or "32 tokens".
        budget_high: the largest.
        split: which part of the data.
        questions: how many, drawn with the seed; all of them if ``None``.
        batch_size: questions a batch.
        threads: CPU threads; left as they are if ``None``.
        device: where to run.
        dtype: of the weights.
        seed: draws the questions and the choices.
    """

    unit: ClassVar[str] = "questions"

    model: str
    method: str
    data: str
    space: str = "sigmoid"
    quality: str = "exact_match"
    budget_low: str = "5%"
    budget_high: str = "60%"
    split: str = "test"
    questions: int | None = 400
    batch_size: int = 50
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in SEARCHED:
            place = getattr(methods(None).get(self.method), "place", None)
            found = f"it acts on the {place}" if place == "features" else "no search space is known for it"
            raise ConfigError(
                f"{self.method} cannot be searched: {found}. In multimodal models there is a search for "
                f"{', '.join(SEARCHED)}; other methods take their knobs from a sweep."
            )
        for name, allowed in (
            ("space", tuple(RATE_SPACES)),
            ("quality", tuple(MULTIMODAL_QUALITIES)),
            ("dtype", get_args(DType)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                near = get_close_matches(str(value), allowed, n=1, cutoff=0)[0]
                raise ConfigError(f"{name} {value!r}: did you mean {near!r}? There are: {', '.join(allowed)}.")
        for name in ("questions", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: at least 1 is needed.")

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Cost and quality as axes of a plot."""
        return PREFILL, MULTIMODAL_QUALITIES[self.quality]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the results, as plain data: processes that share a study must have the same."""
        return {name: value for name, value in asdict(self).items() if name not in _ANYHOW}
