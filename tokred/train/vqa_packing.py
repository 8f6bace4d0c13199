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


def pool(features: Tensor, side: int, factor: int) -> tuple[Tensor, Tensor]:
    """Put the mean of every square of so many by so many patch tokens in the place of its first one.

    Args:
        features: the tokens of one picture of ``side`` by ``side`` patches [N, D].
        side: patches in a row.
        factor: side of the squares.

    Returns:
        The fewer tokens [M, D], and the places [M] they had among the N.
    """
    S, f, D = side, factor, features.shape[-1]
    means = features.view(S // f, f, S // f, f, D).mean((1, 3))  # [S / f, S / f, D]
    return means.flatten(0, 1), torch.arange(S * S).view(S, S)[::f, ::f].flatten()


def thin(shows: Tensor, grids: Sequence[Grid], shown: int, blank: int) -> Tensor:
    """Draw patch tokens of a thumbnail and of tiles; return their places among all tokens [M], newlines with them.

    Args:
        shows: which patches show something, of the thumbnail and of the tiles in the order of reading, bool [T, S, S].
        grids: the thumbnail and the tiles.
        shown: of each tile, and of the thumbnail, at most so many tokens that show something.
        blank: so many others.
    """
    chance = torch.rand(shows.shape).flatten(1)
    kept = torch.zeros_like(chance, dtype=torch.bool)
    for kind, count in ((shows.flatten(1), shown), (~shows.flatten(1), blank)):
        order = chance.where(kind, -1.0).argsort(1, descending=True)[:, :count]
        kept |= kind & torch.zeros_like(kept).scatter(1, order, True)
    side = shows.shape[-1]
    tiles = grids[1]
    mosaic = kept[1:].view(tiles.height // side, -1, side, side).transpose(1, 2).reshape(tiles.height, tiles.width)
    lines = torch.cat([mosaic, torch.ones(tiles.height, 1, dtype=torch.bool)], 1)
    return torch.cat([kept[0], lines.flatten()]).nonzero()[:, 0]
