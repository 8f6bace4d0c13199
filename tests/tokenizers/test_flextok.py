"""What a FlexTok promises beyond the golden vectors."""

import pytest
import torch

from tests.tokenizers.tiny import FLEXTOK, flextok, pictures
from tokred.errors import ConfigError, DataError
from tokred.tokenizers import shorten, to_bytes
from tokred.tokenizers.flextok.dropout import draw_keep, keep_law
from tokred.tokenizers.flextok.flow import follow
from tokred.tokenizers.flextok.guidance import Projected
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.flextok.positions import Positions, spread
from tokred.tokenizers.flextok.quantize import FSQ
from tokred.tokenizers.flextok.times import draw_times


def noise(count=3):
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(7))


def test_the_first_tokens_are_the_same_however_many_are_written():
    model, images = flextok(), pictures()
    codes = model.encode(images)
    assert codes.shape == (3, 6)
    assert codes.dtype == torch.int64
    for tokens in range(1, 7):
        assert torch.equal(model.encode(images, tokens=tokens), codes[:, :tokens])


def test_a_ragged_batch_draws_what_each_row_draws_alone():
    model, images = flextok(), pictures()
    codes, start = model.encode(images), noise()
    counts = torch.tensor([1, 4, 6])
    rows = [row[:count] for row, count in zip(codes, counts, strict=True)]
    together = model.decode(rows, steps=3, noise=start)
    assert torch.equal(together, model.decode(shorten(codes, counts), steps=3, noise=start))
    for i, row in enumerate(rows):
        alone = model.decode(row[None], steps=3, noise=start[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_tokens_behind_the_last_one_do_not_matter_and_those_before_do():
    model, start = flextok(), noise(1)
    codes = model.encode(pictures(1))
    other = codes.clone()
    other[:, 3:] = (other[:, 3:] + 7) % 40
    first, second = (model.decode(c[:, :3], steps=2, noise=start) for c in (codes, other))
    assert torch.equal(first, second)
    assert not torch.equal(model.decode(codes, steps=2, noise=start), model.decode(other, steps=2, noise=start))


def test_one_generator_draws_the_same_pictures_in_one_batch_or_in_many():
    model = flextok()
    codes = model.encode(pictures())
    whole = model.decode(codes, steps=2, generator=torch.Generator().manual_seed(0))
    chance = torch.Generator().manual_seed(0)
    parts = torch.cat([model.decode(row[None], steps=2, generator=chance) for row in codes])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


def test_the_estimate_is_one_step_of_the_flow():
    for prediction in ("velocity", "image"):
        model = flextok(prediction=prediction)
        codes, start = model.encode(pictures()), noise()
        torch.testing.assert_close(model.estimate(codes, noise=start), model.decode(codes, steps=1, noise=start))


def test_tokens_for_grow_with_the_quality_and_stop_at_the_estimate_that_is_good_enough():
    model, images = flextok(), pictures(8)
    codes = model.encode(images)
    clean = model.prepare(images)
    errors = torch.stack([(model.estimate(codes[:, :k]) - clean).abs().mean((1, 2, 3)) / 2 for k in (1, 2, 4, 6)])
    quality = float(errors.median())
    found = model.tokens_for(images, quality)
    for i, count in enumerate(found.tolist()):
        good = [k for k, error in zip((1, 2, 4, 6), errors[:, i].tolist(), strict=True) if error <= quality]
        assert count == (good[0] if good else 6)
    assert (model.tokens_for(images, 0.0) == 6).all()
    assert (model.tokens_for(images, 10.0) == 1).all()


def test_bytes_and_floats_give_the_same_codes():
    model, images = flextok(), pictures()
    floats = images.float() / 127.5 - 1
    assert torch.equal(model.encode(images), model.encode(floats))
    assert torch.equal(to_bytes(floats), images)


def test_a_head_of_zeros_gives_the_middle_id():
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    assert fsq(torch.zeros(1, 6))[1].item() == 32036
    assert fsq.size == 64_000


def test_every_id_comes_back_through_its_code():
    fsq = FSQ((8, 5, 3))
    ids = torch.arange(fsq.size)
    assert torch.equal(fsq.ids_of(fsq.codes_of(ids)), ids)


def test_rounding_is_exact_in_half_precision():
    fsq, z = FSQ((8, 8, 8, 5, 5, 5)), torch.randn(100, 6).bfloat16()
    assert torch.equal(fsq.bfloat16()(z)[1], FSQ((8, 8, 8, 5, 5, 5))(z.float())[1])


def test_bf16_and_compiled_models_draw_nearly_the_same():
    model = flextok()
    codes, start = model.encode(pictures()), noise()
    drawn = model.decode(codes, steps=2, guidance=2.0, noise=start)
    half = flextok().to(torch.bfloat16).decode(codes, steps=2, guidance=2.0, noise=start)
    assert half.dtype == torch.float32
    assert (drawn - half).abs().mean() < 0.05 * drawn.abs().mean()
    model.decoder.compile(fullgraph=True, backend="eager")
    model.encoder.compile(fullgraph=True, backend="eager")
    assert torch.equal(model.encode(pictures()), codes)
    torch.testing.assert_close(model.decode(codes, steps=2, guidance=2.0, noise=start), drawn)


@pytest.mark.parametrize("law", ["uniform", "pow2", "uniform_pow2"])
@pytest.mark.parametrize("tokens", [1, 6, 16])
def test_drawn_lengths_follow_their_law(law, tokens):
    probability = keep_law(law, tokens)
    assert float(probability.sum()) == pytest.approx(1)
    drawn = draw_keep(law, tokens, 4000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=tokens + 1) / 4000
    assert (share - probability).abs().max() < 0.03


@pytest.mark.parametrize("law", ["logit_normal", "stratified", "uniform", "mode", "noisy"])
def test_times_lie_between_picture_and_noise(law):
    t = draw_times(law, 1000, torch.Generator().manual_seed(0))
    assert t.shape == (1000,)
    assert 0 <= float(t.min()) < 0.3
    assert 0.7 < float(t.max()) <= 1


def test_following_a_straight_line_arrives_at_its_end():
    start, end = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for steps in (1, 7):
        torch.testing.assert_close(follow(lambda x, t: start - end, start, steps), end, atol=1e-5, rtol=1e-5)


def test_guidance_without_effect_is_not_computed():
    def never(x, t):
        raise AssertionError

    follow(lambda x, t: x, torch.zeros(1, 1, 2, 2), 2, unconditional=never, guidance=lambda t: 1.0)


def test_projected_guidance_leaves_equal_predictions_alone():
    v = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(Projected()(v, v.clone(), 7.5), v)


def test_gradients_reach_every_weight():
    model = flextok()
    clean = model.prepare(pictures())
    codes, _ = model.fsq(model.encoder(clean))
    keep, drop = torch.tensor([3, 6, 6]), torch.tensor([False, False, True])
    model.decoder(clean, torch.tensor([0.2, 0.5, 0.9]), model.decoder.condition(codes, keep, drop)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


BAD_PICTURES = [
    (torch.zeros(1, 3, 16, 16), "3 channels"),
    (torch.zeros(1, 1, 20, 16), "20 x 16"),
    (torch.zeros(1, 16, 16), "no pictures"),
    (torch.zeros(1, 1, 16, 16, dtype=torch.int64), "int64"),
    ([1], "list"),
]


@pytest.mark.parametrize(("images", "message"), BAD_PICTURES)
def test_pictures_of_another_size_or_mode_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        flextok().encode(images)


BAD_CODES = [
    (torch.full((1, 2), 40), "ids are 0 to 39"),
    (torch.full((1, 2), -2), "ids are 0 to 39"),
    (torch.zeros(1, 0, dtype=torch.int64), "0 tokens"),
    (torch.zeros(1, 7, dtype=torch.int64), "7 tokens"),
    (torch.zeros(1, 2), "float32"),
    (torch.tensor([[1, -1, 2]]), "only behind"),
    (torch.tensor([[-1, -1]]), "only behind"),
]


@pytest.mark.parametrize(("codes", "message"), BAD_CODES)
def test_codes_that_the_model_does_not_have_are_refused(codes, message):
    with pytest.raises(DataError, match=message):
        flextok().decode(codes)


@pytest.mark.parametrize("tokens", [0, 7])
def test_a_number_of_tokens_that_the_model_does_not_have_is_refused(tokens):
    with pytest.raises(DataError, match="1 to 6"):
        flextok().encode(pictures(), tokens=tokens)


@pytest.mark.parametrize("changes", [{"null": None}, {"null_probability": 0.0}])
def test_guidance_without_null_training_is_refused(changes):
    model = flextok(**changes)
    codes = model.encode(pictures())
    model.decode(codes, steps=1)
    with pytest.raises(ConfigError, match="trained without tokens"):
        model.decode(codes, guidance=2.0)


def test_other_impossible_wishes_are_refused():
    with pytest.raises(ConfigError, match="steps: 0"):
        flextok().decode(torch.zeros(1, 1, dtype=torch.int64), steps=0)
    with pytest.raises(ConfigError, match="does not divide"):
        flextok(patch=5)
    with pytest.raises(ConfigError, match="heads of 16"):
        flextok(encoder=flextok().config.encoder.model_copy(update={"width": 24}))
    with pytest.raises(ConfigError, match="square grid"):
        Positions(16, (2, 3))
    with pytest.raises(ConfigError, match="at least two"):
        FSQ((8, 1))
    with pytest.raises(DataError, match="does not fit"):
        Positions(16, (2, 2))(3, 3)


def test_a_model_for_any_size_takes_smaller_and_oblong_pictures():
    model = flextok(any_size=True)
    images = torch.zeros(2, 1, 8, 12)
    codes = model.encode(images)
    assert model.decode(codes, steps=1, size=(8, 12)).shape == images.shape
    with pytest.raises(DataError, match="positions for 16"):
        model.encode(torch.zeros(1, 1, 20, 16))
    with pytest.raises(DataError, match="4 x 4"):
        model.encode(torch.zeros(1, 1, 10, 16))


def test_the_first_places_are_far_apart_and_none_comes_twice_before_all_did():
    order = spread(4, 4, 20).tolist()
    assert sorted(order[:16]) == list(range(16))
    assert order[16:] == order[:4]
    rows, columns = torch.tensor(order[:5]) // 4, torch.tensor(order[:5]) % 4
    assert {(int(r), int(c)) for r, c in zip(rows, columns, strict=True)} >= {(0, 0), (0, 3), (3, 0), (3, 3)}


def test_at_the_start_a_register_looks_at_its_own_place():
    """Untrained, and blind to what is drawn: the place decides what a register sees."""
    torch.manual_seed(0)
    model = FlexTok(FLEXTOK.model_copy(update={"registers": 16}))
    encoder, block = model.encoder, model.encoder.blocks[0]
    with torch.no_grad():
        places, registers = encoder.positions(4, 4)[0], encoder.registers
        q, k = block.attn.qkv(torch.nn.functional.layer_norm(torch.cat([places, registers]), (32,))).chunk(3, -1)[:2]
        q, k = (torch.nn.functional.layer_norm(x.unflatten(-1, (2, -1)), (16,)) for x in (q[16:], k[:16]))
        closest = torch.einsum("qhd,khd->qk", q, k).argmax(1)
    assert torch.equal(closest, spread(4, 4, 16))
