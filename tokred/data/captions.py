"""Pictures with captions: what a data set for retrieval holds."""

from collections.abc import Sequence

from torch import Tensor

from tokred.errors import DataError


class CaptionedImages:
    """Pictures in memory, as bytes [N, C, H, W], each with one or more captions.

    Args:
        images: uint8 [N, C, H, W].
        captions: for every picture the texts that describe it.

    Raises:
        DataError: no pictures, another number of captions than of pictures, or a picture without a caption.
    """

    def __init__(self, images: Tensor, captions: Sequence[Sequence[str]]):
        if len(images) == 0:
            raise DataError("There are no pictures to find captions for. Retrieval needs at least one.")
        if len(images) != len(captions):
            raise DataError(
                f"{len(images)} pictures, but captions for {len(captions)}. Give every picture its list of captions."
            )
        for index, own in enumerate(captions):
            if isinstance(own, str) or not own or not all(isinstance(text, str) and text.strip() for text in own):
                raise DataError(f"Picture {index}: a list of captions that are not empty is needed (found {own!r}).")
        self.images, self.captions = images, tuple(tuple(own) for own in captions)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: Sequence[int]) -> "CaptionedImages":
        """Return some of the pictures, with their captions."""
        indices = list(indices)
        return CaptionedImages(self.images[indices], [self.captions[index] for index in indices])
