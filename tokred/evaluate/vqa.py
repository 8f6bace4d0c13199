"""How many questions about pictures a model answers with exactly the expected words."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from tokred.data.vqa import VQAExample


@dataclass(frozen=True)
class ExactMatch:
    """How many of ``total`` answers were right, word for word, and what was answered.

    >>> ExactMatch(3, 4).percent
    75.0
    """

    correct: int
    total: int
    answers: tuple[str, ...] = field(default=(), repr=False)
    right: tuple[bool, ...] = field(default=(), repr=False)

    @property
    def percent(self) -> float:
        """Percent; NaN where nothing was asked."""
        return 100 * self.correct / self.total if self.total else float("nan")

    def __str__(self) -> str:
        return f"{self.percent:.2f} % ({self.correct} of {self.total})"


def prompt_of(processor: Any, example: VQAExample) -> str:
    """Return the question as the model was taught to read it, by the processor's chat template."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in example.images]
    content.append({"type": "text", "text": example.question})
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@torch.inference_mode()
def exact_match(
    model: Any,
    processor: Any,
    dataset: Iterable[VQAExample],
    batch_size: int = 32,
    *,
    limit: int | None = None,
    max_new_tokens: int = 8,
    report: Callable[[int], None] | None = None,
) -> ExactMatch:
    """Answer the questions greedily by ``model.generate`` and compare in lower case, spaces at the ends aside.

    The model runs in eval mode and is given back in the mode it was in.

    Args:
        model: a model of transformers that takes images and text.
        processor: its processor, with a chat template.
        dataset: examples, as :class:`tokred.data.vqa.VQADataset` yields.
        batch_size: questions a batch; shorter prompts are padded on the left.
        limit: ask only the first so many.
        report: called after each batch with the number of questions asked so far.
    """
    was_training = model.training
    model.eval()
    answers: list[str] = []
    right: list[bool] = []
    examples = islice(iter(dataset), limit)
    try:
        while batch := list(islice(examples, batch_size)):
            inputs = processor(
                images=[list(example.images) for example in batch],
                text=[prompt_of(processor, example) for example in batch],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ).to(model.device, model.dtype)
            said = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            said = said[:, inputs["input_ids"].shape[1] :]
            for example, answer in zip(batch, processor.batch_decode(said, skip_special_tokens=True), strict=True):
                answers.append(answer.strip().lower())
                right.append(answers[-1] == example.answer.strip().lower())
            if report is not None:
                report(len(answers))
    finally:
        model.train(was_training)
    return ExactMatch(sum(right), len(answers), tuple(answers), tuple(right))
