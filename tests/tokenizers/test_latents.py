"""KARL and TiTok."""

import pytest
import torch

from tests.tokenizers.tiny import karl, pictures, titok
from tokred.errors import DataError
from tokred.tokenizers.halting import GRID, attention_allowed, grid_index, halting_loss, halting_target


def halting_at(model, wanted):
    """A KARL whose halting head halts what is wanted, whatever it sees."""
    table = torch.where(wanted, 50.0, -50.0)

    def read(images, command, tokens=None):
        z, _ = type(model).read(model, images, command, tokens)
        return z, table[: z.shape[1]].expand(len(z), -1)

    model.read = read
    return model


@pytest.mark.parametrize("codes", [{"codebook": 32}, {"codebook": None, "levels": (5, 5)}])
def test_halted_tokens_are_marked_and_say_nothing(codes):
    model = halting_at(karl(**codes), torch.tensor([False, True, False, False, True, True]))
    images = pictures()
    found = model.encode(images, quality=0.05)
    assert (found == -1).sum(1).tolist() == [3, 3, 3]
    assert model.tokens_for(images, 0.05).tolist() == [3, 3, 3]
    z, _ = model.read(images.float() / 127.5 - 1, torch.zeros(3, dtype=torch.int64))
    other = found.clone()
    assert torch.equal(model.decode(found), model.decode(other))
    changed = found.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 25
    assert not torch.equal(model.decode(found), model.decode(changed))
    values = model.quantizer(z)[0]
    halted = found == -1
    noisy = torch.where(halted[..., None], torch.randn_like(values), values)
    torch.testing.assert_close(model.draw(values, halted), model.draw(noisy, halted))


def test_the_request_reaches_the_codes():
    model, images = karl(), pictures()
    with torch.no_grad():
        model.commands.add_(torch.randn_like(model.commands))
    loose, _ = model.read(model.prepare(images), torch.full((3,), 18))
    tight, _ = model.read(model.prepare(images), torch.zeros(3, dtype=torch.int64))
    assert not torch.equal(loose, tight)


def test_requests_go_to_the_next_value_of_the_grid():
    grid = torch.tensor(GRID)
    assert grid_index(torch.tensor([0.0, 0.005, 0.0051, 0.38, 1.0]), grid).tolist() == [0, 0, 1, 18, 18]


def test_the_two_parts_of_the_halting_loss_are_added():
    logits = torch.tensor([[-3.0, 0.5, 2.0]])
    whole = torch.nn.functional.binary_cross_entropy_with_logits
    by_hand = whole(logits[:, :2], torch.zeros(1, 2)) + whole(logits[:, 2:], torch.ones(1, 1))
    torch.testing.assert_close(halting_loss(logits, 2), by_hand)
    torch.testing.assert_close(halting_loss(logits, 3), whole(logits, torch.zeros(1, 3)))
    assert halting_target(3, 2).tolist() == [0, 0, 1]


def test_nobody_sees_a_halted_token_and_it_sees_itself():
    allowed = attention_allowed(torch.tensor([[False, True, False]]), 2)[0]
    assert allowed[3].tolist() == [False, False, False, True, False]
    assert allowed[:, 3].tolist() == [False, False, False, True, False]
    assert bool(allowed[[0, 1, 2, 4]][:, [0, 1, 2, 4]].all())


def test_a_request_is_translated_by_what_came_out_of_others():
    model, images = karl(), pictures()
    asked = [model.tokens_for(images, quality) for quality in (0.05, 0.2)]
    reached = tuple(error / 2 for error in GRID)
    model.config = model.config.model_copy(update={"reached": reached})
    assert torch.equal(model.tokens_for(images, 0.025), asked[0])
    assert torch.equal(model.tokens_for(images, 0.1), asked[1])
    assert (model.encode(images, quality=0.1) != -1).sum(1).tolist() == asked[1].tolist()
    with pytest.raises(ValueError, match="reached"):
        karl(reached=reached[:3])


def test_titok_has_one_length():
    model, images = titok(), pictures()
    codes = model.encode(images)
    assert codes.shape == (3, 6)
    assert model.decode(codes).shape == (3, 1, 16, 16)
    assert model.tokens_for(images, 0.1).tolist() == [6, 6, 6]
    assert model.bits_per_token == 5
    for short in (codes[:, :5], codes.masked_fill(torch.arange(6) == 5, -1)):
        with pytest.raises(DataError, match="exactly 6 tokens"):
            model.decode(short)


@pytest.mark.parametrize("make", [karl, titok])
def test_codes_out_of_range_and_wrong_pictures_are_refused(make):
    model = make()
    with pytest.raises(DataError, match="ids are 0 to 31"):
        model.decode(torch.full((1, 6), 32))
    with pytest.raises(DataError, match="32 x 32"):
        model.encode(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("changes", [{"codebook": None}, {"levels": (5, 5)}, {"patch": 5}])
def test_a_configuration_that_contradicts_itself_is_refused(changes):
    with pytest.raises(ValueError, match=r"give either codebook or levels|does not divide"):
        karl(**changes)


def test_the_codebook_pulls_and_is_pulled():
    model = karl()
    z = torch.randn(2, 6, 12, requires_grad=True)
    codes, _, loss = model.quantizer(z)
    (codes.sum() + loss).backward()
    assert z.grad.abs().sum() > 0
    assert model.quantizer.inner.codebook.grad.abs().sum() > 0
