"""Naming what a picture shows by texts alone: the class whose descriptions are nearest."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from tokred.errors import DataError


def class_features(
    model: Any, tokenizer: Callable[[list[str]], Tensor], classes: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """Return one feature a class [C, D]: the mean over all templates, as CLIP does (Radford et al., arXiv 2103.00020).

    Args:
        model: a CLIP of open_clip.
        tokenizer: list of texts to ids [B, L].
        classes: their names.
        templates: texts with ``{}`` where the name goes.

    Raises:
        DataError: no classes, no templates, or a template without a place for the name.
    """
    from open_clip import build_zero_shot_classifier

    if not classes or not templates:
        raise DataError("Zero-shot classification needs at least one class and one template, such as 'a {}'.")
    for template in templates:
        if "{}" not in template:
            raise DataError(f"The template {template!r} has no {{}} for the name of the class. Try 'a {{}}'.")
    device = next(model.parameters()).device
    return build_zero_shot_classifier(model, tokenizer, list(classes), list(templates), device=device).T.float().cpu()


def nearest_class(images: Tensor, classes: Tensor) -> Tensor:
    """Return for features [N, D] the class [N] whose feature [C, D] has the greatest cosine.

    >>> import torch
    >>> nearest_class(torch.tensor([[2.0, 0.1]]), torch.eye(2))
    tensor([0])
    """
    return class_cosines(images, classes).argmax(-1)


def class_cosines(images: Tensor, classes: Tensor) -> Tensor:
    """Return the cosines [N, C] of features [N, D] with those of the classes [C, D]."""
    return normalize(images.float(), dim=-1) @ normalize(classes.float(), dim=-1).T
