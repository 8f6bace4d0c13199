"""The kernels as operators of PyTorch: schemas, tracing, export, FLOPs, gradients."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokred import ops
from tokred.ops.dispatch import is_interpreted, kernel, without_kernel
from tokred.token_map import TokenMap

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
interpreted = pytest.mark.skipif(not is_interpreted(), reason="on a GPU, tracing is part of the benchmark")


def tokens(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def calls():
    """One call of every operator."""
    kernel("best_match"), kernel("energy"), kernel("merge"), kernel("farthest"), kernel("attention_received")
    kernel("attention_row"), kernel("key_biased_attention")
    namespace = torch.ops.tokred
    x, q = tokens(2, 9, 16), tokens(2, 2, 9, 16)
    index = torch.arange(9, device=DEVICE).expand(2, -1)
    row = q[..., 0].contiguous()
    return [
        (namespace.match.default, (x, x, None, None, False)),
        (namespace.bipartite_match.default, (x, 2, 1, None)),
        (namespace.merge.default, (x, None, index[:, 2:], index[:, :2], index[:, :2], None, None, None, True)),
        (namespace.energy.default, (x, 0, 0.5, 1.0, None)),
        (namespace.density.default, (x, 3, None)),
        (namespace.attention_row.default, (q[:, :, :1], q, 0.3, None)),
        (namespace.attention_lse.default, (q, q, 0.3, None)),
        (namespace.attention_received.default, (q, q, 0.3, row, None, row)),
        (namespace.farthest.default, (x @ x.transpose(1, 2), 4, index[:, 0].contiguous(), None, None)),
        (namespace.key_biased_attention.default, (q, q, q, tokens(2, 9), 0.3)),
    ]


NAMES = [call[0].name() for call in calls()] if is_interpreted() else []


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_the_operator_keeps_its_promises_to_pytorch(place):
    operator, arguments = calls()[place]
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_the_operator_counts_its_flops(place):
    operator, arguments = calls()[place]
    with FlopCounterMode(display=False) as counter:
        operator(*arguments)
    assert counter.get_total_flops() > 0


def test_the_flops_of_matching_are_those_of_the_product():
    a, b = tokens(2, 5, 16), tokens(2, 7, 16)
    with FlopCounterMode(display=False) as plain:
        without_kernel(ops.best_match)(a, b)
    with FlopCounterMode(display=False) as fused:
        kernel("best_match")(a, b)
    assert plain.get_total_flops() == fused.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("best_match", lambda x, q: (x[:, :5], x[:, 5:]), (0, 1)),
        ("energy", lambda x, q: (x, 0.4, 0.8), (0,)),
        ("gaussian_energy", lambda x, q: (x, 0.4), (0,)),
        ("attention_row", lambda x, q: (q, q[:, :1], 0.3, 2), (0, 1)),
        ("attention_received", lambda x, q: (q, q + 1, 0.3, q[..., 0]), (0, 1, 3)),
        ("key_biased_attention", lambda x, q: (q, q + 1, q - 1, x[..., 0]), (0, 1, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gradients_are_those_of_plain_pytorch(name, arguments, wanted, dtype):
    def gradients(run):
        inputs = list(arguments(tokens(2, 9, 16, dtype=dtype), tokens(2, 2, 9, 16, dtype=dtype)))
        leaves = []
        for place in wanted:
            inputs[place] = inputs[place].detach().clone().requires_grad_()
            leaves.append(inputs[place])
        found = run(*inputs)
        found = found[0] if isinstance(found, tuple) else found
        return torch.autograd.grad(
            (found * torch.linspace(0, 1, found.numel(), device=DEVICE).view_as(found)).sum(), leaves
        )

    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(gradients(kernel(name)), gradients(without_kernel(getattr(ops, name))), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mean", [True, False])
def test_gradients_of_plain_merging_are_right(mean):
    x = tokens(2, 7, 3).double().requires_grad_()
    size = (tokens(2, 7).double().abs() + 1).requires_grad_()
    index = torch.arange(7, device=DEVICE).expand(2, -1)
    kept, moved, into = index[:, 3:], index[:, :3], torch.tensor([[0, 0, -1], [3, 1, 0]], device=DEVICE)

    def merged(x, size):
        return without_kernel(ops.merge_tokens)(x, None, kept, moved, into, size, mean)

    assert torch.autograd.gradcheck(lambda x: merged(x, size.detach()), (x,))


def test_sizes_that_want_gradients_get_them(monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "triton")
    x, size = tokens(1, 6, 4), tokens(1, 6).abs().requires_grad_()
    index = torch.arange(6, device=DEVICE).unsqueeze(0)
    y, sizes = ops.merge(x, size, index[:, 2:], index[:, :2], index[:, :2])
    (y.sum() + sizes.sum()).backward()
    assert size.grad is not None
    assert size.grad.abs().sum() > 0


def test_merging_at_once_is_merging_tokens_and_sizes():
    index = torch.arange(9, device=DEVICE).expand(2, -1)
    token_map = TokenMap(index[:, 3:], index[:, :3], torch.tensor([[0, 0, -1], [5, 1, 0]], device=DEVICE), 9)
    x, size = tokens(2, 9, 4), tokens(2, 9).abs()
    for given in (None, size):
        y, sizes = token_map.merge(x, given)
        assert torch.equal(y, token_map.apply(x, given))
        assert torch.equal(sizes, token_map.apply_size(given))


class Reducing(torch.nn.Module):
    def forward(self, x):
        kept, moved, into = ops.bipartite_match(x, 3, 1)
        y, sizes = ops.merge(x, None, kept, moved, into)
        return y, sizes, ops.energy(y, 0.5)


@interpreted
def test_torch_compile_and_export_take_the_operators(monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "triton")
    x, model = tokens(2, 12, 16), Reducing()
    wanted = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found in (compiled(x), torch.export.export(model, (x,)).module()(x)):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
    graph = str(torch.export.export(model, (x,)).graph)
    assert "tokred.bipartite_match" in graph
    assert "tokred.merge" in graph


@pytest.mark.full
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_for_gpus_that_are_not_here(capability, tmp_path):
    import json
    import os

    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.ops.compile_kernels", capability]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=290)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len({entry["kernel"] for entry in made}) == 11
    assert max(entry["shared"] for entry in made) <= 101376  # what every GPU since 8.0 has, 8.6 and 8.9 included
