"""Slow versions of the methods in NumPy, float64, one image at a time, written from the papers' text with plain loops.

They share no code with tokred. A reduction is a list of slots, each a list of input tokens; ``gap`` is the smallest
difference among the comparisons that decided it, so that a caller can leave near-ties out.
"""
