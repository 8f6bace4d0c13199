"""Which way an operator takes, and what it says about it."""

import ast
from pathlib import Path

import pytest
import torch

from tokred import ops
from tokred.ops import dispatch
from tokred.ops.dispatch import KERNELS, describe, kernel, refusal, without_kernel

interpreted = pytest.mark.skipif(not dispatch.is_interpreted(), reason="Triton compiles here")


@pytest.fixture
def forced(monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "triton")


def runs_kernel(monkeypatch, call):
    """Whether a call of an operator arrives at a kernel."""
    found = []
    monkeypatch.setattr(dispatch, "kernel", lambda name: found.append(name) or kernel(name))
    call()
    return found


def tokens(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@interpreted
@pytest.mark.parametrize(("asked", "found"), [("triton", ["best_match"]), ("auto", []), ("off", [])])
def test_the_variable_chooses(monkeypatch, asked, found):
    monkeypatch.setenv("TOKRED_KERNELS", asked)
    x = tokens(1, 4, 8)
    assert runs_kernel(monkeypatch, lambda: ops.best_match(x, x)) == found


def test_an_unknown_word_is_refused(monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "fast")
    with pytest.raises(ValueError, match=r"TOKRED_KERNELS='fast': known are auto, off, triton"):
        ops.best_match(tokens(1, 4, 8), tokens(1, 4, 8))


def test_the_reason_is_said(monkeypatch):
    assert describe("cpu") == "plain PyTorch (tensors are on the CPU)"
    assert describe("mps") == "plain PyTorch (kernels are for CUDA, not for mps)"
    monkeypatch.setenv("TOKRED_KERNELS", "off")
    assert describe("cuda") == "plain PyTorch (TOKRED_KERNELS=off)"


@interpreted
def test_forced_kernels_are_said(forced):
    assert describe("cpu") == "Triton, TOKRED_KERNELS=triton"
    assert describe("cpu", torch.float64).endswith("not for float64)")


def test_without_the_interpreter_the_cpu_has_no_kernels(forced, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1 only" in describe("cpu")


def test_old_gpus_and_other_vendors_fall_back(monkeypatch):
    monkeypatch.setattr(dispatch, "_capability", lambda device: (7, 5))
    assert "compute capability 7.5: kernels are for 8.0 and later" in describe("cuda")
    monkeypatch.setattr(dispatch, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "TRIED", frozenset({(9, 0)}))
    assert describe("cuda") == "Triton, TOKRED_KERNELS=auto"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in describe("cuda")


@interpreted
@pytest.mark.parametrize(
    ("name", "tensors", "reason"),
    [
        ("best_match", [tokens(1, 4, 8).long()], "not for int64"),
        ("best_match", [tokens(1, 4, 8).double()], "not for float64"),
        ("best_match", [tokens(1, 4, 8), tokens(1, 4, 8).half()], "data types differ: float16, float32"),
        ("best_match", [tokens(0, 4, 8), tokens(0, 4, 8)], "empty tensors"),
        ("best_match", [tokens(1, 4, 0), tokens(1, 4, 0)], "empty tensors"),
        ("best_match", [tokens(1, 1, 9000), tokens(1, 1, 9000)], "width 9000: the kernel takes up to 8192"),
        ("farthest", [tokens(1, 8193, 2)], "8193 tokens: the kernel takes up to 8192"),
        ("attention_row", [tokens(1, 1, 2, 257), tokens(1, 1, 2, 257)], "width 257"),
        ("farthest", [tokens(1, 1, 1).expand(64, 4096, 1)], "64 x 4096 x 4096 cosines"),
        ("best_match", [tokens(1, 1, 1).expand(1, 2**31 + 1, 1)], "beyond 2^31"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_no_kernel_can_do_falls_back(forced, name, tensors, reason):
    assert reason in (refusal(name, tensors) or "")


def test_the_reach_of_a_tensor_counts_strides_and_sizes():
    assert dispatch._reach(torch.empty(2, 2**30, 3, device="meta")) == 3 * 2**30 - 1
    assert dispatch._reach(tokens(1, 1, 1).expand(4, 7, 9)) == 9  # strides of 0: one number, however often it is shown


@interpreted
def test_what_falls_back_gives_the_plain_result(forced):
    x = tokens(2, 6, 8).double()
    for part, wanted in zip(ops.best_match(x, x), without_kernel(ops.best_match)(x, x), strict=True):
        assert torch.equal(part, wanted)
    empty = torch.zeros(0, 6, 8)
    assert [part.shape for part in ops.best_match(empty, empty)] == [(0, 6), (0, 6)]
    assert [part.shape for part in ops.bipartite_match(empty, 2, 1)] == [(0, 4), (0, 2), (0, 2)]
    assert ops.energy(empty, 0.5).shape == (0, 6)
    y, sizes = ops.merge(empty, None, *(torch.zeros(0, n, dtype=torch.int64) for n in (4, 2, 2)))
    assert (y.shape, sizes.shape) == ((0, 4, 8), (0, 4))


@interpreted
def test_tensors_on_two_devices_are_refused(forced):
    with pytest.raises(ValueError, match="best_match: all tensors must be on one device, found cpu and meta"):
        ops.best_match(tokens(1, 4, 8), tokens(1, 4, 8).to("meta"))


@interpreted
def test_too_little_shared_memory_falls_back_and_is_remembered(forced, monkeypatch):
    class OutOfResources(Exception):  # noqa: N818 - as Triton calls it
        pass

    def fail(*args, **kwargs):
        raise OutOfResources("out of resource: shared memory, Required: 300000, Hardware limit: 101376")

    monkeypatch.setattr(dispatch, "_failed", {})
    monkeypatch.setattr(dispatch, "kernel", lambda name: fail)
    x = tokens(1, 5, 8)
    assert torch.equal(ops.energy(x, 0.5), without_kernel(ops.energy)(x, 0.5))
    assert "plain PyTorch for energy (out of resource: shared memory" in describe("cpu")
    assert "shared memory" in (refusal("energy", [x]) or "")


@interpreted
def test_other_errors_of_a_kernel_are_not_hidden(forced, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("wrong")

    monkeypatch.setattr(dispatch, "kernel", lambda name: fail)
    with pytest.raises(RuntimeError, match="wrong"):
        ops.energy(tokens(1, 5, 8), 0.5)


@pytest.mark.parametrize("name", KERNELS)
def test_plain_and_fused_operators_take_the_same_arguments(name):
    import inspect

    plain, fused = (inspect.signature(f) for f in (without_kernel(getattr(ops, name)), kernel(name)))
    assert list(plain.parameters) == list(fused.parameters)
    assert [p.default for p in plain.parameters.values()] == [p.default for p in fused.parameters.values()]
    assert KERNELS[name].file in kernel(name).__module__ or KERNELS[name].file == "diverse"


def test_plain_operators_need_no_triton():
    for path in (Path(ops.__file__).parent).glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if "triton" in name], path.name


def test_gpus_on_which_no_kernel_was_tried_get_kernels_only_when_asked(monkeypatch):
    monkeypatch.setattr(dispatch, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "TRIED", frozenset())
    assert "never tried on compute capability 9.0" in describe("cuda")
    monkeypatch.setenv("TOKRED_KERNELS", "triton")
    assert describe("cuda") == "Triton, TOKRED_KERNELS=triton"
