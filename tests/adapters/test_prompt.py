"""Prompts are cut to what stays, in order, padded on the left, and every token outside finds its slot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokred.adapters.prompt import (
    ImageChoice,
    PlacedImage,
    cut_mask,
    ends_of,
    padding_of,
    place_images,
    positions_of,
    shorten,
    slots_behind,
    whole,
)
from tokred.errors import TokredError
from tokred.token_map import TokenMap


def some_prompts(seed: int) -> tuple[Tensor, list[list[PlacedImage]]]:
    """Three prompts of up to two images each, padded on the left, and which tokens of the images stay."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    tokens = 24
    valid = torch.ones(3, tokens, dtype=torch.bool)
    images: list[list[PlacedImage]] = []
    for b in range(3):
        start = number(0, 4)
        valid[b, :start] = False
        row = []
        for _ in range(number(0, 3)):
            start += number(1, 3)
            length = number(3, 8)
            kept = torch.randperm(length, generator=generator)[: number(1, length)]
            row.append(
                PlacedImage(ImageChoice(TokenMap.select(kept[None], length)), torch.arange(start, start + length))
            )
            start += length
        images.append(row)
    return valid, images


@pytest.mark.parametrize("seed", range(20))
def test_text_and_kept_tokens_stay_in_order_behind_the_padding(seed: int):
    valid, images = some_prompts(seed)
    cut = shorten(valid, images)
    if not any(images):
        assert cut is None
        return
    assert cut is not None
    for b, row in enumerate(images):
        gone = {int(place) for image in row for place in image.places}
        slots = [(place, place, -1, -1) for place in range(valid.shape[1]) if valid[b, place] and place not in gone]
        for which, image in enumerate(row):
            kept = image.choice.map.kept[0].tolist()
            taken = image.places[kept].tolist()  # the kept tokens take the kept places, in the order of the method
            slots += [(*slot, which, patch) for *slot, patch in zip(sorted(taken), taken, kept, strict=True)]
        slots.sort()
        pad = cut.num_slots - len(slots)
        assert cut.valid[b].tolist() == [False] * pad + [True] * len(slots)
        for column, values in zip((1, 2, 3), (cut.index, cut.image, cut.patch), strict=True):
            assert values[b, pad:].tolist() == [slot[column] for slot in slots]
        assert cut.visual[b].tolist() == [False] * pad + [slot[2] >= 0 for slot in slots]
        stands = [max(sum(slot[0] <= place for slot in slots) - 1, 0) + pad for place in range(valid.shape[1])]
        assert cut.expand[b].tolist() == stands


def test_an_image_that_keeps_everything_needs_no_plan():
    image = PlacedImage(ImageChoice(TokenMap.identity(1, 3)), torch.arange(1, 4))
    valid = torch.ones(1, 5, dtype=torch.bool)
    assert shorten(valid, [[image]]) is None
    cut = shorten(valid, [[image]], everything=True)
    assert cut is not None
    assert torch.equal(cut.index, whole(valid, [[image]]).index)


def test_merged_tokens_become_the_rows_of_their_slots():
    one = torch.tensor([[0, 2]])
    merging = TokenMap(one, torch.tensor([[1]]), torch.tensor([[0]]), 3)
    x = torch.arange(10.0).view(2, 5, 1)
    images = [[PlacedImage(ImageChoice(merging), torch.arange(1, 4))], []]
    cut = shorten(torch.ones(2, 5, dtype=torch.bool), images)
    assert cut is not None
    assert cut.embeddings(x)[..., 0].tolist() == [[0.0, 0.0, 1.5, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]
    assert cut.padded


def test_two_slots_from_one_token_are_refused():
    twice = PlacedImage(ImageChoice(TokenMap.select(torch.tensor([[1, 1]]), 3)), torch.arange(3))
    with pytest.raises(ValueError, match="every slot from another token"):
        shorten(torch.ones(1, 4, dtype=torch.bool), [[twice]])


@pytest.mark.parametrize("merges", [False, True])
def test_visual_tokens_that_the_mask_hides_are_refused(merges: bool):
    one = torch.tensor([[0]])
    token_map = TokenMap(one, one + 1, one, 3) if merges else TokenMap.select(one, 3)
    valid = torch.tensor([[True, True, False, False, True]])
    with pytest.raises(TokredError, match="mask hides visual tokens"):
        shorten(valid, [[PlacedImage(ImageChoice(token_map), torch.arange(1, 4))]])


def test_images_belong_to_prompts_by_their_numbers_of_tokens():
    choices = [ImageChoice(TokenMap.identity(1, n)) for n in (2, 1, 3)]
    placeholder = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0]]).bool()
    rows = place_images(placeholder, choices)
    assert rows is not None
    assert [[image.places.tolist() for image in row] for row in rows] == [[[1, 2], [4]], [[0, 1, 3]]]
    beams = place_images(placeholder.repeat_interleave(2, dim=0), choices)
    assert beams is not None
    assert [[image.choice for image in row] for row in beams] == [choices[:2], choices[:2], choices[2:], choices[2:]]
    assert place_images(placeholder[:, 1:], choices) is None, "a placeholder is missing"
    torn = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    assert place_images(torn, choices) is None, "an image would be torn"


def test_dropped_tokens_stand_behind_the_last_one_that_stays():
    later = TokenMap.select(torch.tensor([[0, 2], [0, 3]]), 4, valid=torch.tensor([[True, True], [False, True]]))
    assert slots_behind(later, None).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert slots_behind(later, torch.tensor([[0, 0, 3], [1, 3, 3]])).tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("more", [0, 2], ids=["dynamic", "static"])
def test_a_slot_sees_what_its_token_saw_of_those_that_are_there(dtype: torch.dtype, more: int):
    sees = torch.ones(1, 1, 4, 4 + more, dtype=torch.bool).tril()
    mask = sees if dtype == torch.bool else torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(dtype).min)
    index, valid = torch.tensor([[0, 1, 3]]), torch.tensor([[False, True, True]])
    cut = cut_mask(mask, index, valid, 4)
    seen = cut if dtype == torch.bool else cut == 0
    unwritten = [0] * (4 + more - 3 if more else 0)
    assert seen[0, 0].int().tolist() == [row + unwritten for row in ([1, 0, 0], [0, 1, 0], [0, 1, 1])]


def test_padding_is_read_off_every_kind_of_mask():
    valid = torch.tensor([[False, True, True], [True, True, True]])
    seen = valid[:, None, None] & torch.ones(3, 3, dtype=torch.bool).tril()
    added = torch.zeros(2, 1, 3, 3).masked_fill(~seen, -1e9)
    for mask in (valid.long(), seen, added, {"full_attention": added}):
        assert torch.equal(padding_of(mask, 2, 3, valid.device), valid)
    assert padding_of(None, 2, 3, valid.device).all()


def test_positions_count_what_is_real():
    valid = torch.tensor([[False, True, True], [True, True, False]])
    assert positions_of(valid).tolist() == [[0, 0, 1], [0, 1, 1]]
    first, last = ends_of(valid, None)
    assert (first.tolist(), last.tolist()) == ([[0], [0]], [1, 1])
    first, last = ends_of(valid, torch.tensor([[5, 6, 7]]))
    assert (first.tolist(), last.tolist()) == ([[6], [5]], [7, 6])
