"""The mathematics of token reduction in plain PyTorch: the truth that fused kernels must reproduce."""

from tokred.ops.attention import attention_matrix, attention_means, attention_received, attention_row
from tokred.ops.distance import distances
from tokred.ops.diverse import farthest, nearest_distance
from tokred.ops.energy import density, energy, gaussian_energy
from tokred.ops.heads import head_mean
from tokred.ops.match import best_match, bipartite_match, both_real, cosine, unit
from tokred.ops.merge import merge, merge_sizes, merge_tokens, take
from tokred.ops.proportional import key_biased_attention, proportional_attention
from tokred.ops.rank import first_votes, page_rank, rank_descending

__all__ = [
    "attention_matrix",
    "attention_means",
    "attention_received",
    "attention_row",
    "best_match",
    "bipartite_match",
    "both_real",
    "cosine",
    "density",
    "distances",
    "energy",
    "farthest",
    "first_votes",
    "gaussian_energy",
    "head_mean",
    "key_biased_attention",
    "merge",
    "merge_sizes",
    "merge_tokens",
    "nearest_distance",
    "page_rank",
    "proportional_attention",
    "rank_descending",
    "take",
    "unit",
]
