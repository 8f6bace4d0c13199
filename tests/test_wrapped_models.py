"""Models that something else has wrapped or rewritten before: quantised, data-parallel, compiled."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import nn

import tokred

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(name: str = "deit_tiny_patch16_224") -> nn.Module:
    return timm.create_model(name, depth=3, num_classes=10, img_size=64).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["tome", "topk", "zerotprune"])
def test_a_quantised_model_is_reduced_and_given_back(method):
    model = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        before = model(X)
        with tokred.patch(model, tokred.create_method(method), trace=True) as handle:
            reduced = model(X)
            assert handle.trace.tokens_per_layer[-1] < 17
        assert torch.isfinite(reduced).all()
        assert not torch.equal(reduced, before)
        assert torch.equal(model(X), before)


def test_a_quantised_model_costs_what_the_plain_one_costs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    plain = tokred.patch(small(), tokred.ToMe(r=2)).cost
    quantised = tokred.patch(model, tokred.ToMe(r=2)).cost
    assert quantised.macs == pytest.approx(plain.macs, rel=0.01)


def test_a_data_parallel_model_trains_reduced(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small().train())
        with tokred.patch(model, tokred.ToMe(r=2), trace=True) as handle:
            model(X).square().sum().backward()
            assert handle.trace.tokens_per_layer == [15, 13, 11]
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        assert "forward" not in vars(model.module.blocks[0]), "the patch is out of the model inside"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", [name for name in tokred.methods() if name != "tome"])
def test_every_method_compiles_into_one_graph(method):
    model = small()
    with tokred.patch(model, tokred.create_method(method)), torch.no_grad():
        expected = model(X)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), expected, rtol=1e-4, atol=1e-5)
