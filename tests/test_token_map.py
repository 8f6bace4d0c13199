"""What every token reduction conserves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokred import TokenMap
from tokred.token_map import gather_tokens, take

many = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
NEAR = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.05}


def random_slots(generator: torch.Generator, batch: int, tokens: int, slots: int, dropped: int) -> Tensor:
    """[B, N] a slot for every token, every slot at least once, ``dropped`` tokens in none."""
    members = tokens - dropped
    rows = []
    for _ in range(batch):
        slot = torch.cat([torch.arange(slots), torch.randint(slots, (members - slots,), generator=generator)])
        slot = torch.cat([slot, torch.full((dropped,), -1)])
        rows.append(slot[torch.randperm(tokens, generator=generator)])
    return torch.stack(rows)


@st.composite
def slots_of_tokens(draw: st.DrawFn, *, droppable: bool = False) -> tuple[Tensor, int, torch.Generator]:
    """Slots [B, N], their number, and a generator for more."""
    generator = torch.Generator().manual_seed(draw(seeds))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    slots = draw(st.integers(1, tokens))
    dropped = draw(st.integers(0, tokens - slots)) if droppable else 0
    return random_slots(generator, batch, tokens, slots, dropped), slots, generator


def features(slot: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*slot.shape, 3, generator=generator, dtype=torch.float64).to(dtype)


def integer_sizes(slot: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(1, 9, slot.shape, generator=generator).float()


def members(slot: Tensor, image: int, index: int) -> Tensor:
    return (slot[image] == index).nonzero().flatten()


@many
@given(slots_of_tokens())
def test_sizes_sum_to_the_number_of_tokens(case):
    slot, slots, _ = case
    sizes = TokenMap.from_slot(slot, slots).apply_size()
    assert sizes.dtype == torch.float32
    assert sizes.sum(dim=1).tolist() == [slot.shape[1]] * slot.shape[0]
    assert sizes.min() >= 1


@many
@given(slots_of_tokens(droppable=True))
def test_sizes_that_are_not_dropped_are_kept_exactly(case):
    slot, slots, generator = case
    size = integer_sizes(slot, generator) * 1000 + 1
    found = TokenMap.from_slot(slot, slots).apply_size(size)
    for image in range(slot.shape[0]):
        wanted = [size[image, members(slot, image, index)].sum().item() for index in range(slots)]
        assert found[image].tolist() == wanted


@many
@given(slots_of_tokens(droppable=True), dtypes, st.booleans())
def test_merged_tokens_lie_between_their_members(case, dtype, sized):
    slot, slots, generator = case
    x = features(slot, generator, dtype)
    merged = TokenMap.from_slot(slot, slots).apply(x, integer_sizes(slot, generator) if sized else None)
    assert merged.dtype == dtype
    slack = NEAR[dtype]
    for image in range(slot.shape[0]):
        for index in range(slots):
            group = x[image, members(slot, image, index)]
            assert (merged[image, index] >= group.amin(dim=0) - slack).all()
            assert (merged[image, index] <= group.amax(dim=0) + slack).all()


@many
@given(slots_of_tokens(droppable=True), dtypes, st.booleans())
def test_merged_tokens_are_the_mean_of_their_members_by_size(case, dtype, sized):
    slot, slots, generator = case
    x, size = features(slot, generator, dtype), integer_sizes(slot, generator)
    merged = TokenMap.from_slot(slot, slots).apply(x, size if sized else None)
    for image in range(slot.shape[0]):
        for index in range(slots):
            group = members(slot, image, index)
            weight = (size if sized else torch.ones_like(size))[image, group].double()
            wanted = (x[image, group].double() * weight[:, None]).sum(dim=0) / weight.sum()
            assert (merged[image, index].double() - wanted).abs().max() <= NEAR[dtype]


@many
@given(slots_of_tokens(droppable=True))
def test_the_slots_that_a_map_is_built_from_come_back(case):
    slot, slots, _ = case
    token_map = TokenMap.from_slot(slot, slots)
    assert torch.equal(token_map.slot, slot)
    assert token_map.num_slots == slots
    assert torch.equal(slot.gather(1, token_map.kept), torch.arange(slots).expand(slot.shape[0], -1))


@many
@given(slots_of_tokens(droppable=True))
def test_the_first_token_of_a_slot_is_its_anchor(case):
    slot, slots, _ = case
    token_map = TokenMap.from_slot(slot, slots)
    for image in range(slot.shape[0]):
        wanted = [members(slot, image, index)[0].item() for index in range(slots)]
        assert token_map.kept[image].tolist() == wanted


@many
@given(slots_of_tokens(droppable=True))
def test_the_source_matrix_has_a_one_where_a_token_went(case):
    slot, slots, _ = case
    matrix = TokenMap.from_slot(slot, slots).to_source_matrix()
    for image in range(slot.shape[0]):
        for index in range(slots):
            assert matrix[image, index].nonzero().flatten().tolist() == members(slot, image, index).tolist()
    assert torch.equal(matrix.sum(dim=1), (slot >= 0).float())


@many
@given(slots_of_tokens(droppable=True), dtypes)
def test_unmerged_rows_are_those_of_the_slot(case, dtype):
    slot, slots, generator = case
    token_map = TokenMap.from_slot(slot, slots)
    y = torch.randn(slot.shape[0], slots, 3, generator=generator).to(dtype)
    back = token_map.unmerge(y, fill=7.0)
    assert back.dtype == dtype
    for image in range(slot.shape[0]):
        for token, index in enumerate(slot[image].tolist()):
            wanted = y[image, index] if index >= 0 else torch.full_like(y[image, 0], 7.0)
            assert torch.equal(back[image, token], wanted)


@many
@given(slots_of_tokens(), st.booleans())
def test_merging_what_was_unmerged_changes_nothing(case, sized):
    slot, slots, generator = case
    token_map = TokenMap.from_slot(slot, slots)
    size = integer_sizes(slot, generator) if sized else None
    merged = token_map.apply(features(slot, generator), size)
    again = token_map.apply(token_map.unmerge(merged), size)
    torch.testing.assert_close(again, merged, rtol=0, atol=1e-6)


@many
@given(slots_of_tokens(droppable=True))
def test_dropped_tokens_can_be_filled_with_rows_of_their_own(case):
    slot, slots, generator = case
    x = features(slot, generator)
    token_map = TokenMap.from_slot(slot, slots)
    back = token_map.unmerge(token_map.apply(x), fill=x)
    lost = slot < 0
    assert torch.equal(back[lost], x[lost])


@many
@given(slots_of_tokens(droppable=True), st.data())
def test_a_composed_map_does_what_its_parts_do_one_after_the_other(case, data):
    slot, slots, generator = case
    later_slots = data.draw(st.integers(1, slots))
    dropped = data.draw(st.integers(0, slots - later_slots))
    first = TokenMap.from_slot(slot, slots)
    later = TokenMap.from_slot(random_slots(generator, slot.shape[0], slots, later_slots, dropped), later_slots)
    both = first.compose(later)
    x, size = features(slot, generator), integer_sizes(slot, generator)
    assert both.num_tokens == slot.shape[1]
    torch.testing.assert_close(
        both.apply(x, size), later.apply(first.apply(x, size), first.apply_size(size)), rtol=0, atol=1e-5
    )
    assert torch.equal(both.apply_size(size), later.apply_size(first.apply_size(size)))
    chained = later.to_source_matrix() @ first.to_source_matrix()
    assert torch.equal(both.to_source_matrix(), chained)


@many
@given(slots_of_tokens(droppable=True))
def test_batch_neighbours_do_not_matter(case):
    slot, slots, generator = case
    x, size = features(slot, generator), integer_sizes(slot, generator)
    together = TokenMap.from_slot(slot, slots)
    for image in range(slot.shape[0]):
        one = slice(image, image + 1)
        alone = TokenMap.from_slot(slot[one], slots)
        assert torch.equal(together.apply(x, size)[one], alone.apply(x[one], size[one]))
        assert torch.equal(together.apply_size(size)[one], alone.apply_size(size[one]))
        assert torch.equal(together.unmerge(together.apply(x))[one], alone.unmerge(alone.apply(x[one])))


@many
@given(slots_of_tokens(droppable=True))
def test_the_order_in_which_tokens_are_listed_does_not_matter(case):
    slot, slots, generator = case
    token_map = TokenMap.from_slot(slot, slots)
    shuffle = torch.randperm(token_map.moved.shape[1], generator=generator)
    shuffled = replace(token_map, moved=token_map.moved[:, shuffle], into=token_map.into[:, shuffle])
    x, size = features(slot, generator), integer_sizes(slot, generator)
    assert torch.equal(shuffled.slot, token_map.slot)
    torch.testing.assert_close(shuffled.apply(x, size), token_map.apply(x, size), rtol=0, atol=1e-5)


@many
@given(slots_of_tokens(droppable=True), st.integers(1, 2))
def test_whatever_belongs_to_a_token_can_be_gathered_for_the_anchors(case, dim):
    slot, slots, generator = case
    kept = TokenMap.from_slot(slot, slots).kept
    shape = [slot.shape[0], 2, 2]
    shape[dim] = slot.shape[1]
    t = torch.randn(*shape, generator=generator)
    found = TokenMap.from_slot(slot, slots).gather(t, dim)
    for image in range(slot.shape[0]):
        assert torch.equal(found[image], t[image].index_select(dim - 1, kept[image]))
    shared = TokenMap.from_slot(slot, slots).gather(t[:1], dim - 3)
    for image in range(slot.shape[0]):
        assert torch.equal(shared[image], t[0].index_select(dim - 1, kept[image]))


@many
@given(seeds, st.integers(1, 3), st.integers(1, 9), st.data())
def test_selected_tokens_are_copied_bit_by_bit(seed, batch, tokens, data):
    generator = torch.Generator().manual_seed(seed)
    count = data.draw(st.integers(1, tokens))
    kept = torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(batch)])
    x = torch.randn(batch, tokens, 3, generator=generator)
    token_map = TokenMap.select(kept, tokens)
    assert torch.equal(token_map.apply(x), torch.stack([image[k] for image, k in zip(x, kept, strict=True)]))
    assert torch.equal(take(x, kept), token_map.apply(x))
    assert torch.equal(token_map.apply_size(), torch.ones(batch, count))
    assert (token_map.slot < 0).sum(dim=1).tolist() == [tokens - count] * batch


@many
@given(slots_of_tokens())
def test_the_identity_changes_nothing(case):
    slot, _, generator = case
    token_map = TokenMap.identity(*slot.shape)
    x, size = features(slot, generator), integer_sizes(slot, generator)
    assert torch.equal(token_map.apply(x, size), x)
    assert torch.equal(token_map.apply_size(size), size)
    assert torch.equal(token_map.unmerge(x), x)


@many
@given(slots_of_tokens(), st.data())
def test_padding_slots_stand_for_nothing(case, data):
    slot, slots, generator = case
    batch, tokens = slot.shape
    real = data.draw(st.lists(st.integers(0, slots), min_size=batch, max_size=batch))
    valid = torch.arange(slots).expand(batch, -1) < torch.tensor(real)[:, None]
    kept = torch.stack([torch.randperm(tokens, generator=generator)[:slots] for _ in range(batch)])
    kept = kept.masked_fill(~valid, 0)  # padding repeats a token, as the first one of a batch
    token_map = TokenMap.select(kept, tokens, valid=valid)
    size = integer_sizes(slot, generator)
    found = token_map.apply_size(size)
    for image in range(batch):
        stays = kept[image, : real[image]].tolist()
        assert found[image].tolist() == size[image, stays].tolist() + [0.0] * (slots - real[image])
        wanted = [stays.index(token) if token in stays else -1 for token in range(tokens)]
        assert token_map.slot[image].tolist() == wanted
    assert token_map.to_source_matrix().sum(dim=2).bool().tolist() == valid.tolist()


@many
@given(slots_of_tokens(), st.data())
def test_moved_tokens_may_be_dropped_in_one_image_only(case, data):
    slot, slots, generator = case
    whole = TokenMap.from_slot(slot, slots)
    lost = torch.rand(whole.into.shape, generator=generator) < 0.5
    ragged = replace(whole, into=whole.into.masked_fill(lost, -1))
    x, size = features(slot, generator), integer_sizes(slot, generator)
    cut = slot.scatter(1, whole.moved, whole.into.masked_fill(lost, -1))
    wanted = TokenMap.from_slot(cut, slots)
    assert torch.equal(ragged.slot, cut)
    torch.testing.assert_close(ragged.apply(x, size), wanted.apply(x, size), rtol=0, atol=1e-5)
    assert torch.equal(ragged.apply_size(size), wanted.apply_size(size))


def test_a_token_that_is_dropped_gives_its_slot_no_weight():
    token_map = TokenMap(torch.tensor([[0]]), torch.tensor([[1, 2]]), torch.tensor([[0, -1]]), 3)
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert token_map.apply(x).tolist() == [[[2.0]]]
    assert token_map.apply_size().tolist() == [[2.0]]
    assert token_map.slot.tolist() == [[0, 0, -1]]


def test_own_weights_replace_the_sizes_in_a_mean():
    token_map = TokenMap(
        torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[0]]), 2, weight=torch.tensor([[1.0, 3.0]])
    )
    x, size = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[5.0, 5.0]])
    assert token_map.apply(x, size).tolist() == [[[3.0]]]
    assert token_map.apply_size(size).tolist() == [[10.0]]


def test_a_sum_is_not_divided_by_its_weights():
    token_map = TokenMap(
        torch.tensor([[0, 1]]),
        torch.tensor([[2, 3]]),
        torch.tensor([[1, 1]]),
        4,
        weight=torch.tensor([[1.0, 0.5, 2.0, 10.0]]),
        reduce="sum",
    )
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    assert token_map.apply(x).tolist() == [[[1.0], [1.0 + 6.0 + 40.0]]]


def test_size_factors_scale_what_a_token_adds():
    token_map = TokenMap(
        torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[0]]), 2, size_weight=torch.tensor([[1.0, 0.25]])
    )
    assert token_map.apply_size(torch.tensor([[2.0, 4.0]])).tolist() == [[3.0]]
    assert token_map.apply(torch.tensor([[[0.0], [1.0]]])).tolist() == [[[0.5]]]


def test_negative_size_factors_never_make_a_size_negative():
    token_map = TokenMap(
        torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[0]]), 2, size_weight=torch.tensor([[1.0, -0.5]])
    )
    size = token_map.apply_size(torch.tensor([[1.0, 9.0]]))
    assert size.log().isfinite().all()
    assert size.item() < 1e-6


def test_a_token_may_join_several_slots():
    token_map = TokenMap(torch.tensor([[0, 1]]), torch.tensor([[2, 2]]), torch.tensor([[0, 1]]), 3)
    x = torch.tensor([[[0.0], [4.0], [2.0]]])
    assert token_map.apply(x).tolist() == [[[1.0], [3.0]]]


def test_sizes_stay_exact_where_half_precision_would_round_them():
    tokens = 3000
    token_map = TokenMap.from_slot(torch.zeros(1, tokens, dtype=torch.int64), 1)
    assert token_map.apply_size(torch.ones(1, tokens, dtype=torch.bfloat16)).item() == tokens


@pytest.mark.parametrize("tokens", [2, 50, 500])
def test_a_mean_in_half_precision_is_off_by_at_most_one_step_of_its_largest_member(tokens):
    x = torch.zeros(1, tokens, 2)
    x[0, 0] = 100.0
    token_map = TokenMap.from_slot(torch.zeros(1, tokens, dtype=torch.int64), 1)
    merged = token_map.apply(x.bfloat16())
    assert (merged.double() - 100 / tokens).abs().max() <= 0.5  # bfloat16 steps by 0.5 near 100


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_empty_batch_stays_empty_and_keeps_its_dtype(batch, dtype):
    slot = torch.tensor([0, 1, 0, -1]).expand(batch, -1).contiguous()
    token_map = TokenMap.from_slot(slot, 2)
    merged = token_map.apply(torch.ones(batch, 4, 5, dtype=dtype))
    assert merged.shape == (batch, 2, 5)
    assert merged.dtype == dtype
    assert token_map.apply_size().shape == (batch, 2)
    assert token_map.unmerge(merged).shape == (batch, 4, 5)
    assert token_map.to_source_matrix().shape == (batch, 2, 4)
    assert token_map.gather(torch.ones(batch, 4)).shape == (batch, 2)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(slots_of_tokens(droppable=True), st.sampled_from(["mean", "sum"]), st.booleans())
def test_gradients_of_merged_tokens_are_right(case, reduce, sized):
    slot, slots, generator = case
    token_map = replace(TokenMap.from_slot(slot, slots), reduce=reduce)
    size = integer_sizes(slot, generator) if sized else None
    x = features(slot, generator, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_map.apply(x, size), (x,))


def test_gradients_reach_the_sizes():
    token_map = TokenMap.from_slot(torch.tensor([[0, 0, 1]]), 2)
    size = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    merged = token_map.apply(torch.tensor([[[0.0], [4.0], [9.0]]]), size)
    merged[0, 0, 0].backward()
    # the mean m of 0 and 4 with weights a and b: dm/da = (0 - m) / (a + b), dm/db = (4 - m) / (a + b)
    torch.testing.assert_close(size.grad, torch.tensor([[-0.75, 0.25, 0.0]]))


def test_applying_a_map_leaves_its_input_and_the_map_as_they_were():
    token_map = TokenMap.from_slot(torch.tensor([[0, 1, 0, 1], [1, 0, 0, -1]]), 2)
    x, size = torch.randn(2, 4, 3), torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    parts = (x, size, token_map.kept, token_map.moved, token_map.into)
    copies = [part.clone() for part in parts]
    first = token_map.apply(x, size)
    assert torch.equal(token_map.apply(x, size), first)
    assert torch.equal(token_map.apply_size(size), token_map.apply_size(size))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_tokens_that_are_not_contiguous_are_merged_alike():
    slot = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]])
    token_map = TokenMap.from_slot(slot, 2)
    x = torch.randn(2, 3, 4).transpose(1, 2)
    size = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).T.contiguous().T
    assert torch.equal(token_map.apply(x, size), token_map.apply(x.contiguous(), size.contiguous()))
    assert torch.equal(token_map.apply_size(size), token_map.apply_size(size.contiguous()))


def test_anything_indexed_by_token_can_be_merged():
    token_map = TokenMap.from_slot(torch.tensor([[0, 0, 1]]), 2)
    assert token_map.apply(torch.tensor([[1.0, 3.0, 5.0]])).tolist() == [[2.0, 5.0]]
    image = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert token_map.apply(image).tolist() == [[[[2.0, 3.0], [4.0, 5.0]], [[8.0, 9.0], [10.0, 11.0]]]]


def test_one_copy_is_shared_by_all_images_when_gathering():
    index = torch.tensor([[2, 0], [1, 1]])
    assert gather_tokens(torch.tensor([[10, 20, 30]]), index, 1).tolist() == [[30, 10], [20, 20]]


# padding: tokens 2 and 4 of the first image


PADDING = torch.tensor([[True, True, False, True, False], [True, True, True, True, True]])


def test_padding_is_dropped_and_its_slots_come_last():
    token_map = TokenMap(
        kept=torch.tensor([[0, 2, 1], [0, 2, 1]]),
        moved=torch.tensor([[3, 4], [3, 4]]),
        into=torch.tensor([[2, 0], [2, 0]]),
        num_tokens=5,
    ).with_padding_last(PADDING)
    assert token_map.slot.tolist() == [[0, 1, 2, 1, -1], [0, 2, 1, 2, 0]]
    x = torch.tensor([[1.0, 2, 99, 4, 99], [1.0, 2, 3, 4, 5]]).unsqueeze(2)
    assert token_map.apply(x).squeeze(2).tolist() == [[1, 3, 99], [3, 3, 3]]
    assert token_map.apply_size().tolist() == [[1, 2, 1], [2, 1, 2]]


def test_a_real_token_that_must_join_padding_takes_over_the_slot():
    token_map = TokenMap(
        kept=torch.tensor([[2, 0]]),
        moved=torch.tensor([[1, 3]]),
        into=torch.tensor([[0, 0]]),
        num_tokens=5,
        weight=torch.tensor([[5.0, 1, 2, 6]]),
        size_weight=torch.tensor([[5.0, 1, 0.5, 2]]),
    ).with_padding_last(PADDING[:1])
    slot = token_map.slot[0].tolist()
    assert slot[2] == slot[4] == -1, "padding is nowhere"
    assert (slot[0], slot[1], slot[3]) == (1, 0, 0)
    x = torch.tensor([[1.0, 2, 99, 4, 99]]).unsqueeze(2)
    assert token_map.apply(x).squeeze(2)[0].tolist() == [(2 * 2 + 6 * 4) / 8, 1]
    assert token_map.apply_size()[0].tolist() == [2.5, 1]


def test_a_map_without_padding_stays_as_it_is():
    token_map = TokenMap(torch.tensor([[3, 0]]), torch.tensor([[1, 2]]), torch.tensor([[0, -1]]), 4)
    same = token_map.with_padding_last(torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(same.kept, token_map.kept)
    assert torch.equal(same.into, token_map.into)
