"""How often the right caption is found for a picture, and the right picture for a caption."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokred.data.captions import CaptionedImages
from tokred.errors import DataError, NonFiniteError

RANKS = (1, 5)
_CHUNK = 512  # queries whose scores are held at a time


@dataclass(frozen=True)
class Recall:
    """Recall at k in percent, by k, in both directions, and which caption and which picture came first.

    Attributes:
        image_to_text: pictures that find one of their captions among the first k captions.
        text_to_image: captions that find one of their pictures among the first k pictures.
        images: how many pictures were asked about.
        texts: how many different captions.
        first: for every picture the number of the first caption, for every caption that of the first picture.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    images: int
    texts: int
    first: tuple[Tensor, Tensor]

    def columns(self) -> dict[str, float]:
        """The recalls by name, as tables and files hold them.

        >>> Recall({1: 50.0}, {1: 25.0}, 4, 4, (torch.zeros(4), torch.zeros(4))).columns()
        {'image_to_text_r1': 50.0, 'text_to_image_r1': 25.0}
        """
        return {
            f"{name}_r{rank}": value
            for name in ("image_to_text", "text_to_image")
            for rank, value in getattr(self, name).items()
        }


class Captions:
    """The different captions of a data set, and which are right for which picture.

    A caption that several pictures have is one caption with several right pictures.

    Attributes:
        texts: each once, in the order in which they come first.
        right: bool [N, T].
    """

    def __init__(self, captions: Sequence[Sequence[str]]):
        numbers: dict[str, int] = {}
        for own in captions:
            for text in own:
                numbers.setdefault(text, len(numbers))
        self.texts = tuple(numbers)
        self.right = torch.zeros(len(captions), len(numbers), dtype=torch.bool)
        for row, own in enumerate(captions):
            self.right[row, [numbers[text] for text in own]] = True


def recall(images: Tensor, texts: Tensor, right: Tensor, ranks: Sequence[int] = RANKS) -> Recall:
    """Return recall at k by the cosine of features, as Hodosh, Young and Hockenmaier (JAIR 2013) define it.

    A query counts where one of its right answers is among the first k: with several right ones, the best of them. A
    wrong answer that scores the same as the best right one comes before it, so that equal features find nothing.

    Args:
        images: features [N, D].
        texts: features [T, D].
        right: bool [N, T]; every row and every column has a right answer.
        ranks: the numbers k.

    Raises:
        DataError: no pictures, or features and right answers whose numbers do not agree.
        NonFiniteError: features that are not numbers.

    >>> found = recall(torch.eye(3), torch.eye(3)[[0, 1, 1]], torch.eye(3, dtype=torch.bool), ranks=(1,))
    >>> found.image_to_text[1] < found.text_to_image[1]
    True
    """
    if right.numel() == 0:
        raise DataError("There are no pictures with captions to find. Retrieval needs at least one.")
    if right.shape != (len(images), len(texts)):
        raise DataError(
            f"{len(images)} pictures and {len(texts)} captions, but right answers for {right.shape[0]} pictures and "
            f"{right.shape[1]} captions."
        )
    if not (right.any(0).all() and right.any(1).all()):
        raise DataError("A picture without a right caption, or a caption without a right picture, can never be found.")
    if not (torch.isfinite(images).all() and torch.isfinite(texts).all()):
        raise NonFiniteError("Features are not finite. Try float32.")
    images, texts = normalize(images.float(), dim=-1), normalize(texts.float(), dim=-1)
    behind, first = _ranks(images, texts, right)
    behind_back, first_back = _ranks(texts, images, right.T)
    return Recall(
        {rank: 100 * (behind < rank).double().mean().item() for rank in ranks},
        {rank: 100 * (behind_back < rank).double().mean().item() for rank in ranks},
        len(images),
        len(texts),
        (first, first_back),
    )


@torch.inference_mode()
def retrieve(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    data: CaptionedImages,
    transform: Callable[[Tensor], Tensor],
    batch_size: int = 100,
    *,
    report: Callable[[float], None] | None = None,
) -> Recall:
    """Embed all pictures and all different captions, batch by batch, and return the recalls.

    The model runs in eval mode and is given back in the mode it was in. Only features are kept.

    Args:
        model: a CLIP of open_clip: ``encode_image`` and ``encode_text``.
        tokenizer: list of texts to ids [B, L].
        data: pictures as bytes, with captions.
        transform: bytes [B, C, H, W] to what the model takes.
        report: called after each batch of pictures with the share that is done.
    """
    captions = Captions(data.captions)
    was_training = model.training
    model.eval()
    try:
        texts = embed_texts(model, tokenizer, captions.texts, batch_size)
        images = embed_images(model, data.images, transform, batch_size, report=report)
    finally:
        model.train(was_training)
    return recall(images, texts, captions.right)


@torch.inference_mode()
def embed_images(
    model: Any,
    images: Tensor,
    transform: Callable[[Tensor], Tensor],
    batch_size: int = 100,
    *,
    report: Callable[[float], None] | None = None,
) -> Tensor:
    """Return the features [N, D] of pictures as bytes [N, C, H, W], on the CPU."""

    def tell(done: int) -> None:
        if report is not None:
            report(min(1.0, done * batch_size / len(images)))

    return embed_batches(model, ((transform(part), part) for part in images.split(batch_size)), tell)[0]


@torch.inference_mode()
def embed_batches(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]], report: Callable[[int], None] = lambda done: None
) -> tuple[Tensor, Tensor]:
    """Return the features [N, D] of pictures, on the CPU, and what stands beside them [N].

    Args:
        model: a CLIP of open_clip.
        batches: pictures as the model takes them, with numbers or labels, as :class:`tokred.data.Batches` yields.
        report: called with the number of batches that are done.

    Raises:
        DataError: there is no picture.
    """
    like = next(model.parameters())
    found: list[Tensor] = []
    beside: list[Tensor] = []
    for images, numbers in batches:
        found.append(model.encode_image(images.to(like.device, like.dtype)).float().cpu())
        beside.append(numbers)
        report(len(found))
    if not found:
        raise DataError("There are no pictures that can be read.")
    return torch.cat(found), torch.cat(beside)


@torch.inference_mode()
def embed_texts(
    model: Any, tokenizer: Callable[[list[str]], Tensor], texts: Sequence[str], batch_size: int = 100
) -> Tensor:
    """Return the features [T, D] of texts, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([
        model.encode_text(tokenizer(list(texts[start : start + batch_size])).to(device)).float().cpu()
        for start in range(0, len(texts), batch_size)
    ])  # fmt: skip


def _ranks(queries: Tensor, answers: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many wrong answers come before the best right one [Q], and the first answer [Q]."""
    before, first = [], []
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ answers.T
        own = right[start : start + _CHUNK]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        before.append(((scores >= best) & ~own).sum(1))
        first.append(scores.argmax(1))
    return torch.cat(before), torch.cat(first)
