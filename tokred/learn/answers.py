"""Prompts with their answers as one batch, for a language model that is taught the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from tokred.adapters.multimodal import find_multimodal
from tokred.data import VQAExample
from tokred.learn.questions import prompts_of

IGNORE = -100


@dataclass(frozen=True)
class Answered:
    """B prompts, padded on the left, and behind them K places for their answers.

    All prompts end at the same place, so that whoever reads the last prompt token finds it K places before the end.

    Attributes:
        inputs: of the model.
        answers: [B, K] int64, what is to be said at these places; ``IGNORE`` behind the end of shorter answers.
    """

    inputs: dict[str, Any]
    answers: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Answered:
        """The batch on a device, images in a precision."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in self.inputs.items()
        }
        return Answered(moved, self.answers.to(device))


def answer(processor: Any, examples: Sequence[VQAExample]) -> Answered:
    """Put the right answer and the end token behind every question.

    Raises:
        DataError: a question has no image.
    """
    tokenizer = processor.tokenizer
    said = [
        [*tokenizer.encode(example.answer, add_special_tokens=False), tokenizer.eos_token_id] for example in examples
    ]
    longest = max(map(len, said))
    answers = torch.full((len(said), longest), IGNORE)
    for row, tokens in enumerate(said):
        answers[row, : len(tokens)] = torch.tensor(tokens)
    inputs = {name: value for name, value in prompts_of(processor, examples).items() if isinstance(value, Tensor)}
    return Answered(put_behind(inputs, answers, tokenizer.eos_token_id), answers)


def put_behind(inputs: dict[str, Any], answers: Tensor, end: int) -> dict[str, Any]:
    """The inputs with answers [B, K] behind their prompts; ``end`` stands where a shorter answer is over.

    Nobody in front sees those places, and nothing is learned at them.
    """
    shape = inputs["input_ids"].shape
    words = torch.where(answers == IGNORE, end, answers)
    found = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape and name != "input_ids":
            found[name] = pad(value, (0, answers.shape[1]), value=int(name == "attention_mask"))
    found["input_ids"] = torch.cat([inputs["input_ids"], words], dim=1)
    return found


def answer_loss(model: Any, batch: Answered) -> Tensor:
    """Mean cross-entropy of all words of all answers, end included.

    Answers are to the model what drafts are in assisted generation: it is asked for the logits from the last prompt
    token on, so that a patched model decides by the prompt alone, as it will when nobody knows the answer.
    """
    from transformers import DynamicCache

    places = batch.answers.shape[1]
    cache = DynamicCache(config=find_multimodal(model).language.config)
    output = model(**batch.inputs, logits_to_keep=places + 1, past_key_values=cache, use_cache=True)
    logits = output.logits[:, -places - 1 : -1].float()
    return cross_entropy(logits.flatten(0, 1), batch.answers.flatten(), ignore_index=IGNORE)
