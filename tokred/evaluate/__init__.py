"""Measures of what a model still knows after a reduction."""
