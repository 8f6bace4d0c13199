"""Pictures to begin with, all of them shipped or drawn."""

from __future__ import annotations

from functools import cache

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from tokred.data import easy_vqa_sample, fashion_mnist_sample
from tokred.data.shapes import draw_shapes

_COUNT = 8
# The first of each class; the bag first, whose dark ground shows well what is merged.
_CLOTHES = (8, 9, 3, 0, 1, 5, 7, 4)
# The first pictures; one with a large shape in front.
_ASKED = (3, 1, 4, 7, 2, 0, 5, 6)


@cache
def clothes() -> tuple[Image.Image, ...]:
    """Eight test pictures of Fashion-MNIST, one of a class."""
    sample = fashion_mnist_sample()
    return tuple(_as_picture(sample.images[sample.labels == label][0]) for label in _CLOTHES)


@cache
def shapes() -> tuple[Image.Image, ...]:
    """Eight pictures of coloured shapes that no model was trained on."""
    return tuple(_as_picture(image) for image in draw_shapes(_COUNT, seed=1)[0])


@cache
def asked() -> tuple[Image.Image, ...]:
    """Eight pictures of easy-VQA's test split."""
    pictures = easy_vqa_sample().pictures
    return tuple(_as_picture(pictures[index][0]) for index in _ASKED)


MODEL = "llava-shapes"
QUESTIONS = (
    "what shape is present?",
    "what color is the shape?",
    "is there a triangle in the image?",
    "is there a red shape?",
    "does the image contain a circle?",
    "does the image not contain a blue shape?",
)
"""What :data:`MODEL` was taught to answer."""


def _as_picture(image: Tensor) -> Image.Image:
    return to_pil_image(image)
