"""Fused Triton kernels: same names, arguments and results as the plain PyTorch in :mod:`tokred.ops`.

Nothing here is imported before :mod:`tokred.ops.dispatch` has found that kernels can run.
"""
