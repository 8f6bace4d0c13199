"""Compile every kernel for GPUs that need not be there: ``python -m tests.ops.compile_kernels 80 90 [--all]``.

Prints one JSON line for each compilation, with the bytes of shared memory that it takes.
"""

from __future__ import annotations

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from tokred.ops.triton import attention_bias, attention_received, attention_row, diverse, energy, launch, match, merge


class Driver:
    """As much of a driver as compiling asks for."""

    capability = 90

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def __getattr__(self, name):
        raise AttributeError(name)


class Compiled:
    """In the place of a kernel: compiles instead of launching."""

    label = ""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def run(*args, **kwargs):
            made = self.kernel.warmup(*args, grid=grid, **kwargs)
            print(  # noqa: T201 - it is what the script is for
                json.dumps(
                    {
                        "kernel": self.kernel.fn.__name__,
                        "capability": Driver.capability,
                        "case": Compiled.label,
                        "shared": made.metadata.shared,
                        "cubin": len(made.asm["cubin"]),
                    }
                )
            )

        return run


def cases(dtype, width, tokens):
    """Call every operator once."""
    x = torch.zeros(2, tokens, width, dtype=dtype)
    q = torch.zeros(2, 4, tokens, width, dtype=dtype)
    valid = torch.ones(2, tokens, dtype=torch.bool)
    match._match(x, x, torch.ones(2, tokens, tokens, dtype=torch.bool), None, False)
    match._match(x, x, None, None, False)
    match._bipartite(x[:, :1024], 8, 1, None)
    energy._energy(x, 0, 0.5, 1.0, valid)
    index = torch.zeros(2, tokens, dtype=torch.int64)
    sizes = torch.ones(2, tokens)
    merge._merge(x, sizes, index[:, 8:], index[:, :8], index[:, :8], None, None, None, True)
    merge._gather(x, sizes, index, torch.zeros(2, tokens + 1, dtype=torch.int64))
    if width <= 256:
        attention_row._row(q[:, :, :1], q, 0.1, None)
        lse = torch.zeros(2, 4, tokens)
        attention_received._lse(q, q, 0.1, None)
        attention_received._received(q, q, 0.1, lse, None, lse)
        attention_bias._attention(q, q, q, sizes, 0.1)


def others():
    """Kernels and variants that depend on neither data type nor width."""
    x = torch.zeros(2, 50, 64)
    energy._density(x, 5, torch.ones(2, 50, dtype=torch.bool))
    energy._energy(x, 1, 0.5, 1.0, None)
    energy._energy(x, 2, 0.5, 1.0, None)
    diverse._farthest(torch.zeros(2, 50, 50), 7, torch.zeros(2, dtype=torch.int64), torch.ones(2, 50), None)
    match._bipartite(x, 8, 0, torch.ones(2, 50, dtype=torch.bool))
    q = torch.zeros(2, 4, 50, 64)
    for bias in (torch.zeros(2, 4, 50, 50), torch.ones(2, 4, 50, 50, dtype=torch.bool)):
        attention_received._lse(q, q, 0.1, bias)
        attention_received._received(q, q, 0.1, q[..., 0], bias, q[..., 0])
        attention_row._row(q[:, :, :1], q, 0.1, bias[:, :, :1])


def main(arguments):
    """Compile."""
    launch._wrap_triton = Compiled
    for capability in [int(a) for a in arguments if a.isdigit()]:
        Driver.capability = capability
        triton.runtime.driver.set_active(Driver())
        everything = "--all" in arguments
        for dtype in (torch.bfloat16, torch.float32):
            for width in (16, 40, 80, 128, 256, 1024) if everything else (64,):
                for tokens in (1024,) if everything else (197,):
                    Compiled.label = f"{dtype} {width} {tokens}"
                    cases(dtype, width, tokens)
        Compiled.label = "others"
        others()


if __name__ == "__main__":
    main(sys.argv[1:])
