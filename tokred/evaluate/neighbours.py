"""What the nearest pictures with labels say about a picture."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

_CHUNK = 512  # pictures whose similarities are held at a time


def neighbour_classes(
    features: Tensor, known: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return the class [N] that the k nearest known features vote for.

    Nearest is the greatest cosine s, and a vote counts exp(s / temperature), as in DINO (Caron et al., arXiv
    2104.14294) after Wu et al. (arXiv 1805.01978).

    Args:
        features: [N, D] to be classified.
        known: [M, D] with labels.
        labels: int64 [M].
        k: how many vote; all of them, where there are fewer.
        temperature: how much more the nearer ones count.

    >>> known = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    >>> neighbour_classes(torch.tensor([[0.2, 1.0]]), known, torch.tensor([0, 1, 1]), k=2)
    tensor([1])
    """
    known, classes = normalize(known.float(), dim=-1), int(labels.max()) + 1
    votes_of = one_hot(labels, classes).float()  # [M, classes]
    found = []
    for part in normalize(features.float(), dim=-1).split(_CHUNK):
        cosine, place = (part @ known.T).topk(min(k, len(known)), dim=-1)
        votes = (cosine / temperature).exp().unsqueeze(-1) * votes_of[place]  # [B, k, classes]
        found.append(votes.sum(1).argmax(-1))
    return torch.cat(found)
