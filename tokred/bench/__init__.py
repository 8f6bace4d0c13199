"""How fast models run: interleaved timing, peak memory, and what a reduction is worth."""

from tokred.bench.explain import Explanation, explain
from tokred.bench.timing import Comparison, Timing, compare

__all__ = ["Comparison", "Explanation", "Timing", "compare", "explain"]
