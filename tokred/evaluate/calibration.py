"""Whether a model is as often right as it is sure."""

import torch
from torch import Tensor


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in percent (Guo et al., arXiv 1706.04599).

    Answers are put into bins of equal width by how sure the model is; the distance between how sure it is in a bin and
    how often it is right is averaged over answers.

    Args:
        confidence: [N], the probability of the predicted class.
        right: bool [N], whether that class is the label.
        bins: how many.

    >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, True, False])), 3)
    15.0
    """
    bin_of = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # a bin holds its upper end
    surplus = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, confidence.double() - right.double())
    return 100 * surplus.abs().sum().item() / max(len(right), 1)
