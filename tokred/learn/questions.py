"""What a multimodal model answers, and how many visual tokens each layer saw for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tokred.adapters.multimodal import find_multimodal
from tokred.data import VQADataset, VQAExample
from tokred.errors import DataError
from tokred.evaluate.vqa import ExactMatch, exact_match, prompt_of
from tokred.multimodal import MultimodalHandle


class PromptSize(NamedTuple):
    """Tokens of one prompt as the processor makes it."""

    text: int
    visual: int


@dataclass(frozen=True)
class Reached:
    """Answers of a patched model.

    Attributes:
        answers: how many are right, and what was said.
        visual_tokens: for every question, the visual tokens that each layer of the language model saw.
    """

    answers: ExactMatch
    visual_tokens: tuple[tuple[int, ...], ...]

    @property
    def per_layer(self) -> list[float]:
        """Visual tokens of each layer, averaged over the questions."""
        return [sum(column) / len(column) for column in zip(*self.visual_tokens, strict=True)]


def ask(
    handle: MultimodalHandle,
    processor: Any,
    data: VQADataset,
    batch_size: int = 32,
    report: Callable[[float], None] = lambda share: None,
) -> Reached:
    """Ask a patched model all questions, and count what its layers saw."""
    counts: list[tuple[int, ...]] = []

    def count(asked: int) -> None:
        counts.extend(tuple(row) for row in handle.trace.tokens_per_layer)
        report(asked / len(data))

    answers = exact_match(handle.model, processor, data, batch_size, report=count)
    return Reached(answers, tuple(counts))


def prompt_sizes(model: Any, processor: Any, data: VQADataset, batch_size: int = 32) -> list[PromptSize]:
    """How long the prompt of every question is; the model does not run.

    Raises:
        DataError: a question has no image.
    """
    token = find_multimodal(model).inner.config.image_token_id
    found: list[PromptSize] = []
    for start in range(0, len(data), batch_size):
        inputs = prompts_of(processor, [data[i] for i in range(start, min(start + batch_size, len(data)))])
        real = inputs["attention_mask"].sum(dim=1)
        visual = (inputs["input_ids"] == token).sum(dim=1)
        found += [PromptSize(t, v) for t, v in zip((real - visual).tolist(), visual.tolist(), strict=True)]
    return found


def prompts_of(processor: Any, examples: Sequence[VQAExample]) -> Any:
    """The inputs of a batch of questions, padded on the left.

    Raises:
        DataError: a question has no image.
    """
    for example in examples:
        if not example.images:
            raise DataError(
                f"The question {example.question!r} has no image. What is learned here is which visual tokens an "
                "answer needs, so every question must have one."
            )
    return processor(
        images=[list(example.images) for example in examples],
        text=[prompt_of(processor, example) for example in examples],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def draw(data: VQADataset, count: int | None, seed: int) -> VQADataset:
    """So many questions, drawn with the seed and in their order; all of them if ``None`` or too few."""
    if count is None or count >= len(data):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return VQADataset(data.pictures, [data.questions[i] for i in sorted(order.tolist())])


def split_pictures(data: VQADataset, count: int, seed: int) -> tuple[VQADataset, VQADataset]:
    """Set aside ``count`` questions whose pictures nobody else asks about; return the rest and those.

    Raises:
        DataError: too few questions for both.
    """
    numbers = sorted({question.picture for question in data.questions})
    held: set[int] = set()
    questions = 0
    for index in torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist():
        if questions >= count:
            break
        held.add(numbers[index])
        questions += len(data.about(numbers[index]))
    apart = [question for question in data.questions if question.picture in held]
    rest = [question for question in data.questions if question.picture not in held]
    if not rest or questions < count:
        raise DataError(
            f"The data has {len(data)} questions about {len(numbers)} pictures: too few to set {count} of them aside "
            "with their pictures. Set fewer aside."
        )
    return VQADataset(data.pictures, rest), draw(VQADataset(data.pictures, apart), count, seed)
