"""What a model with a thumbnail and tiles answers where the language model does not see one of the two."""

from typing import Any

import torch


class HidingProcessor:
    """A processor of LLaVA-NeXT whose prompts hide visual tokens by the attention mask.

    A model that was trained with all of them was never taught to answer so: what it loses says what it uses, not what
    the questions need. For that, take the detail away (:func:`tokred.data.as_thumbnails`).

    Args:
        processor: the processor of a model whose images have a thumbnail and tiles, one image a prompt.
        thumbnail: visual tokens of the thumbnail; they come first.
        hide: "tiles" or "thumbnail". Newlines count as tiles.
    """

    def __init__(self, processor: Any, thumbnail: int, hide: str = "tiles"):
        self._processor, self._thumbnail, self._hide = processor, thumbnail, hide

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the processor returns, with zeros in the mask where tokens are hidden."""
        inputs = self._processor(*args, **kwargs)
        visual = inputs["input_ids"] == self._processor.image_token_id
        behind = visual.cumsum(1) > self._thumbnail
        hidden = visual & (behind if self._hide == "tiles" else ~behind)
        inputs["attention_mask"] = torch.where(hidden, 0, inputs["attention_mask"])
        return inputs
