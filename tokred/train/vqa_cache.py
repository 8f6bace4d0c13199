"""Tiles that come again and again go through a tower that is not trained only once."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

LIMIT = 20_000  # tiles; 16 KiB each where a tile has 64 tokens of 128 channels


class TileCache:
    """What a frozen tower of LLaVA-NeXT makes of tiles, in bfloat16; thumbnails hardly come twice and are not kept."""

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor] = {}

    def features(self, model: Any, pixels: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """Return what ``model.get_image_features`` returns: the projected tokens of each picture [N, D].

        Args:
            model: LLaVA-NeXT of transformers without its head, with a tower that has a class token.
            pixels: of each picture the thumbnail and the tiles [1 + T, 3, H, H].
            sizes: height and width of each picture [B, 2].
        """
        tiles = torch.cat(list(pixels))
        thumbnails = set(torch.tensor([0, *map(len, pixels)]).cumsum(0).tolist()[:-1])
        keys = {i: _key(tile) for i, tile in enumerate(tiles) if i not in thumbnails}
        new = [i for i in range(len(tiles)) if i in thumbnails or keys[i] not in self._known]
        with torch.no_grad():
            seen = model.vision_tower(tiles[new], output_hidden_states=True)
        hidden = seen.hidden_states[model.config.vision_feature_layer][:, 1:].bfloat16()  # without the class token
        computed = dict(zip(new, hidden, strict=True))
        every = [computed[i] if i in computed else self._known[keys[i]] for i in range(len(tiles))]
        for i in keys.keys() & computed.keys():
            if len(self._known) < LIMIT:
                self._known[keys[i]] = computed[i].clone()  # a view would keep the whole batch
        weight = model.multi_modal_projector.linear_1.weight
        projected = model.multi_modal_projector(torch.stack(every).to(weight.dtype))
        return model.pack_image_features(
            projected.split([len(own) for own in pixels]),
            sizes,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            image_newline=model.image_newline,
        )[0]


def _key(tile: Tensor) -> bytes:
    return blake2b(tile.numpy().tobytes(), digest_size=16).digest()
