"""All questions about a picture in one sequence, each seeing only the picture and itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -1


@dataclass(frozen=True)
class Grid:
    """One block of patch tokens in the order of reading, with or without a newline token behind every row."""

    height: int
    width: int
    newline: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the block."""
        return self.height * (self.width + self.newline)


@dataclass(frozen=True)
class Packed:
    """Questions of B pictures behind their prefixes, padded to T tokens.

    ``segment`` counts the questions of a picture from 1; 0 is padding. ``offset`` is the distance to the end of the
    prefix. ``target`` is the token to be said next, where it belongs to an answer.
    """

    ids: Tensor  # [B, T]
    segment: Tensor  # [B, T]
    offset: Tensor  # [B, T]
    target: Tensor  # [B, T]


def pack(questions: Sequence[Sequence[tuple[list[int], list[int]]]]) -> Packed:
    """Pack, for each picture, pairs of (prompt behind the image, answer with its end token) as token ids.

    >>> pack([[([5, 6], [7, 2])]]).target
    tensor([[-1,  7,  2, -1]])
    """
    T = max(sum(len(prompt) + len(answer) for prompt, answer in pairs) for pairs in questions)
    B = len(questions)
    ids, segment, offset = (torch.zeros(B, T, dtype=torch.long) for _ in range(3))
    target = torch.full((B, T), IGNORE)
    for row, pairs in enumerate(questions):
        at = 0
        for number, (prompt, answer) in enumerate(pairs, 1):
            length = len(prompt) + len(answer)
            ids[row, at : at + length] = torch.tensor(prompt + answer)
            segment[row, at : at + length] = number
            offset[row, at : at + length] = torch.arange(length)
            target[row, at + len(prompt) - 1 : at + length - 1] = torch.tensor(answer)
            at += length
    return Packed(ids, segment, offset, target)


def attention_bias(prefix: Tensor, segment: Tensor) -> Tensor:
    """Return the mask [B, 1, N, N] that is added to the logits: causal, and no question sees another one.

    Args:
        prefix: which of the P tokens in front are real, bool [B, P].
        segment: as in :class:`Packed`, [B, T].
    """
    B, P = prefix.shape
    own = torch.cat([torch.zeros(B, P, dtype=torch.long), segment], 1)  # [B, N]
    real = torch.cat([prefix, segment > 0], 1)
    N = own.shape[1]
    front = torch.arange(N) < P
    seen = (own[:, :, None] == own[:, None, :]) | front  # a question: itself and the prefix
    seen = seen & torch.ones(N, N).tril().bool() & real[:, None, :] | torch.eye(N).bool()
    return torch.zeros(B, 1, N, N).masked_fill_(~seen[:, None], torch.finfo(torch.bfloat16).min)


def pool(features: Tensor, grids: Sequence[Grid], factors: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Put the mean of every square of so many by so many patch tokens in the place of its first one.

    Args:
        features: the tokens of one picture [N, D].
        grids: the blocks that they consist of.
        factors: side of the squares in each block.

    Returns:
        The fewer tokens [M, D], and the places [M] they had among the N; of newlines, one a row of squares stays.
    """
    if all(factor == 1 for factor in factors):
        return features, torch.arange(len(features))
    D = features.shape[-1]
    tokens, places, start = [], [], 0
    for grid, f in zip(grids, factors, strict=True):
        H, W = grid.height, grid.width
        block = features[start : start + grid.tokens].view(H, W + grid.newline, D)
        place = torch.arange(start, start + grid.tokens).view(H, W + grid.newline)
        means = block[:, :W].reshape(H // f, f, W // f, f, D).mean((1, 3))  # [H / f, W / f, D]
        firsts = place[:, :W][::f, ::f]
        if grid.newline:
            means = torch.cat([means, block[::f, W:]], 1)
            firsts = torch.cat([firsts, place[::f, W:]], 1)
        tokens.append(means.flatten(0, 1))
        places.append(firsts.flatten())
        start += grid.tokens
    return torch.cat(tokens), torch.cat(places)
