"""The mathematics in plain PyTorch: parts of the attention equal the whole, ties, zero vectors, sums that are kept."""

import pytest
import torch

from tokred import ops


def qkv(tokens=300, heads=4, groups=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, tokens, 8, generator=g), torch.randn(2, groups, tokens, 8, generator=g)


def biases(tokens=300):
    g = torch.Generator().manual_seed(9)
    return {
        "none": None,
        "keys": torch.randn(2, 1, 1, tokens, generator=g),
        "full": torch.randn(1, 4, tokens, tokens, generator=g),
        "mask": torch.rand(2, 1, 1, tokens, generator=g) > 0.3,
    }


@pytest.mark.parametrize("kind", ["none", "keys", "full", "mask"])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_rows_and_column_sums_equal_those_of_the_whole_attention(kind, groups):
    q, k = qkv(groups=groups)
    bias = biases()[kind]
    whole = ops.attention_matrix(q, k, 0.3, bias)
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(2, 4, 300))
    for index in (0, 7, -1):
        torch.testing.assert_close(ops.attention_row(q, k, 0.3, index, bias), whole[:, :, index])
    weight = torch.rand(2, 4, 300, generator=torch.Generator().manual_seed(1))
    received = ops.attention_received(q, k, 0.3, weight, bias)
    torch.testing.assert_close(received, (weight.unsqueeze(2) @ whole).squeeze(2), atol=1e-5, rtol=1e-5)


def test_the_attention_is_that_of_pytorch():
    q, k = qkv(20)
    v = torch.eye(20).expand(2, 4, 20, 20)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
    torch.testing.assert_close(ops.attention_matrix(q, k, 0.5), expected)


def test_the_best_match_is_the_lowest_index_on_ties():
    a, b = torch.ones(1, 3, 4), torch.ones(1, 5, 4)
    score, index = ops.best_match(a, b)
    assert torch.equal(index, torch.zeros(1, 3, dtype=torch.int64))
    torch.testing.assert_close(score, torch.ones(1, 3))


def test_pairs_that_may_not_meet_are_passed_over():
    a = b = torch.eye(4).unsqueeze(0)
    allowed = ~torch.eye(4, dtype=torch.bool).unsqueeze(0)
    score, index = ops.best_match(a, b, allowed)
    assert torch.equal(index[0], torch.tensor([1, 0, 0, 0]))
    nobody, _ = ops.best_match(a, b, torch.zeros(1, 4, 4, dtype=torch.bool))
    assert (nobody == -torch.inf).all()
    assert (score == 0).all()


def test_zero_vectors_are_like_nothing_instead_of_not_a_number():
    similarity = ops.cosine(torch.zeros(1, 2, 3), torch.randn(1, 4, 3))
    assert torch.equal(similarity, torch.zeros(1, 2, 4))


def test_similarity_is_computed_in_float32_whatever_comes_in():
    assert ops.cosine(torch.randn(1, 2, 3).bfloat16(), torch.randn(1, 2, 3).bfloat16()).dtype == torch.float32
    assert ops.unit(torch.randn(1, 2, 3).double()).dtype == torch.float64


def test_energy_is_high_for_tokens_with_many_near_copies():
    tokens = torch.cat([torch.ones(1, 5, 3), torch.tensor([[[1.0, -1.0, 0.0]]])], dim=1)
    energy = ops.energy(tokens, margin=0.9)
    assert (energy[0, :5] > energy[0, 5]).all()
    # five copies at 1 - 0.9 each, and one at right angles: exp(-0.9) - 1
    expected = (5 * 0.1 + torch.tensor(-0.9).exp() - 1) / 6
    torch.testing.assert_close(energy[0, 0], expected)


def test_the_jump_adds_the_margin_above_it():
    tokens = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(3))
    above = (ops.cosine(tokens, tokens) >= 0.4).float().mean(dim=-1)
    torch.testing.assert_close(ops.energy(tokens, 0.4, jump=True), ops.energy(tokens, 0.4) + 0.4 * above)


def test_votes_sum_to_one_and_stay_so():
    q, k = qkv(17)
    votes = ops.first_votes((2, 4, 17), True, None, q.device)
    torch.testing.assert_close(votes.sum(dim=-1), torch.ones(2, 4))
    torch.testing.assert_close(votes[0, 0, 0] / votes[0, 0, 1], torch.tensor(17**0.5))
    ranked = ops.page_rank(ops.attention_matrix(q, k, 0.3), votes, 30)
    torch.testing.assert_close(ranked.sum(dim=-1), torch.ones(2, 4))


def test_padding_has_no_vote():
    valid = torch.tensor([[True, True, True, False]])
    votes = ops.first_votes((1, 2, 4), True, valid, valid.device)
    assert (votes[..., 3] == 0).all()
    torch.testing.assert_close(votes[0, 0, 0] / votes[0, 0, 1], torch.tensor(3**0.5))


def test_equal_scores_keep_their_order():
    assert torch.equal(ops.rank_descending(torch.tensor([[1.0, 3.0, 1.0, 3.0]])), torch.tensor([[1, 3, 0, 2]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2, 3, 7])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_mean_over_the_heads_is_the_mean(heads: int, dim: int, dtype: torch.dtype):
    x = torch.randn((2, heads, 5, 4) if dim == 1 else (2, 5, heads, 4), dtype=dtype)
    before = x.clone()
    torch.testing.assert_close(ops.head_mean(x, dim=dim), x.mean(dim=dim))
    assert torch.equal(x, before)


def test_the_mean_over_the_heads_has_its_gradient():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.head_mean, x)
