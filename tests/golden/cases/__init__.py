"""What is checked for the vectors of every method; importing a module registers its checks."""

from . import ats, attention_pruning, diffrate, pitome, tome, zerotprune

__all__ = ["ats", "attention_pruning", "diffrate", "pitome", "tome", "zerotprune"]
