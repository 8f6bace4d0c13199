"""Patching: proves itself, is taken back bit by bit, and survives what people do with models."""

import copy
import io
import threading
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

import tokred

PLAIN, ROPE, BEIT, GAP = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
    "vit_base_patch16_siglip_gap_224",
)


def small(name=PLAIN, **changes):
    torch.manual_seed(0)
    knobs = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 10, "img_size": 64, **changes}
    model = timm.create_model(name, **knobs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def run(model, x=None):
    return model(images() if x is None else x)


def stop(*_):
    raise RuntimeError("stop")


def test_leaving_the_context_gives_every_bit_back_also_after_an_exception():
    model = small()
    before, keys = run(model), list(model.state_dict())
    with tokred.patch(model, tokred.ToMe(r=4)):
        assert not torch.equal(run(model), before)
        assert list(model.state_dict()) == keys
        hook = model.blocks[1].mlp.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stop"):
            run(model)
    hook.remove()
    assert torch.equal(run(model), before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_removing_twice_is_no_error_and_unpatch_finds_the_patch():
    model = small()
    before = run(model)
    handle = tokred.patch(model, tokred.ToMe(r=4))
    tokred.unpatch(model)
    assert not handle.active
    handle.remove()
    tokred.unpatch(model)
    assert torch.equal(run(model), before)


def test_a_patched_model_is_not_patched_again():
    model = small()
    tokred.patch(model, tokred.ToMe(r=4))
    with pytest.raises(tokred.AlreadyPatchedError, match=r"patched already with ToMe\(.*remove that patch first"):
        tokred.patch(model, tokred.TopK())


def test_a_copy_has_a_patch_of_its_own():
    model = small()
    before = run(model)
    tokred.patch(model, tokred.ToMe(r=4))
    patched, twin = run(model), copy.deepcopy(model)
    tokred.unpatch(twin)
    assert torch.equal(run(twin), before)
    assert torch.equal(run(model), patched)
    tokred.unpatch(model)
    assert torch.equal(run(model), before)


def test_a_patched_model_survives_pickling():
    model = small()
    tokred.patch(model, tokred.ToMe(r=4))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False)), run(model))


def test_the_state_dict_is_that_of_the_unpatched_model():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokred.patch(model, tokred.PiToMe())
    small().load_state_dict(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", [PLAIN, ROPE])
def test_eight_threads_share_one_patched_model(name):
    model = small(name)
    tokred.patch(model, tokred.ToMe(r=3))
    inputs = [torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    alone = [run(model, x) for x in inputs]
    found: list = [None] * 8

    def work(i):
        found[i] = run(model, inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for together, single in zip(found, alone, strict=True):
        torch.testing.assert_close(together, single)


@pytest.mark.parametrize("name", [PLAIN, ROPE, BEIT])
def test_checkpointing_gives_the_same_gradients_even_with_another_forward_between(name):
    model = small(name)
    tokred.patch(model, tokred.ToMe(r=3))

    def gradient(checkpointing):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        out = model(images())
        model(images() * 2)  # a forward between this one and its backward
        worker = threading.Thread(target=lambda: out.square().sum().backward())
        worker.start()
        worker.join()
        return model.blocks[0].attn.qkv.weight.grad.clone()

    plain = gradient(False)
    assert torch.isfinite(plain).all()
    assert plain.abs().max() > 0
    assert torch.equal(gradient(True), plain)


@pytest.mark.parametrize("name", [PLAIN, ROPE, BEIT])
def test_autocast_and_half_precision_run(name):
    model = small(name)
    tokred.patch(model, tokred.ToMe(r=3))
    exact = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert (run(model).float() - exact).abs().max() < 0.5 * exact.abs().max()
    assert torch.isfinite(model.bfloat16()(images().bfloat16())).all()
    torch.testing.assert_close(run(model.double(), images().double()).shape, exact.shape)


def test_training_mode_has_finite_gradients_with_stochastic_depth():
    model = small(drop_path_rate=0.3).train()
    tokred.patch(model, tokred.PiToMe(keep=0.8))
    assert model.training
    assert model.blocks[0].training, "the self-check leaves the mode as it was"
    model(images(4)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [PLAIN, ROPE, BEIT])
@torch.no_grad()
def test_compile_makes_one_whole_graph_and_never_recompiles(name):
    model = small(name)
    tokred.patch(model, tokred.ToMe(r=3))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for seed in range(3):
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x), model(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_a_compiled_model_is_patched_inside():
    torch._dynamo.reset()
    model = small()
    compiled = torch.compile(model, backend="eager")
    before = compiled(images())
    with tokred.patch(compiled, tokred.ToMe(r=4)):
        torch.testing.assert_close(compiled(images()), model(images()))
        assert not torch.allclose(compiled(images()), before)
    torch.testing.assert_close(compiled(images()), before)


@torch.no_grad()
def test_export_keeps_the_reduction():
    model = small()
    tokred.patch(model, tokred.ToMe(r=4))
    exported = torch.export.export(model, (images(),))
    torch.testing.assert_close(exported.module()(images()), model(images()))


class Adapted(nn.Module):
    """As PEFT wraps a linear layer: the frozen one, and a low-rank path beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.low, self.high = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.high(self.low(x))


@pytest.mark.parametrize("method", [tokred.ToMe(r=4), tokred.ATS(layers=(1,))])
def test_low_rank_adapters_are_seen_by_the_method(method):
    model = small()
    for block in model.blocks:
        block.attn.qkv = Adapted(block.attn.qkv)
    before = run(model)
    wrapped = nn.Module()
    wrapped.peft_config, wrapped.get_base_model = {}, lambda: model
    with tokred.patch(wrapped, method):
        assert not torch.equal(run(model), before)
    assert torch.equal(run(model), before)


def test_what_a_patch_would_not_survive_is_refused_by_name():
    model = small()
    with pytest.raises(tokred.UnsupportedModelError, match=r"DataParallel.*DistributedDataParallel"):
        tokred.patch(nn.DataParallel(model), tokred.ToMe())
    model.blocks[1]._hf_hook = SimpleNamespace()
    with pytest.raises(tokred.UnsupportedModelError, match="Block 1 is dispatched by accelerate"):
        tokred.patch(model, tokred.ToMe())
    del model.blocks[1]._hf_hook
    model.blocks[2].forward = model.blocks[2].forward
    with pytest.raises(tokred.UnsupportedModelError, match="replaced the forward of block 2"):
        tokred.patch(model, tokred.ToMe())


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = timm.create_model(PLAIN, depth=2)
    with pytest.raises(tokred.UnsupportedModelError, match="meta device"):
        tokred.patch(model, tokred.ToMe())


def test_a_model_that_holds_several_encoders_is_refused_with_their_names():
    pair = nn.ModuleDict({"left": small(), "right": small()})
    with pytest.raises(tokred.UnsupportedModelError, match=r"left \(VisionTransformer\), right"):
        tokred.patch(pair, tokred.ToMe())
    tokred.patch(nn.Sequential(small(), nn.ReLU()), tokred.ToMe()).remove()


def test_not_a_method_is_a_type_error():
    with pytest.raises(TypeError, match=r"use for example tokred\.ToMe"):
        tokred.patch(small(), "tome")  # type: ignore[arg-type]


def test_values_that_are_not_finite_name_the_layer():
    model = small()
    tokred.patch(model, tokred.ToMe(r=4))
    x = images()
    x[0, 0, 5, 5] = torch.nan
    with pytest.raises(tokred.NonFiniteError, match="attention of block 0 are not finite"):
        run(model, x)


def test_one_channel_that_overflows_in_the_last_block_names_it():
    model = small()
    last = len(model.blocks) - 1
    with torch.no_grad():
        model.blocks[last].attn.proj.bias[5] = torch.inf
    tokred.patch(model, tokred.ToMe(r=4), verify=False)
    with pytest.raises(tokred.NonFiniteError, match=f"attention of block {last} are not finite"):
        run(model, images())


def test_no_images_give_no_logits():
    model = small()
    for method in (tokred.ToMe(r=4), tokred.TopK(), tokred.ATS()):
        with tokred.patch(model, method):
            assert run(model, images(0)).shape == (0, 10)


def test_another_resolution_gets_its_own_counts():
    model = small(dynamic_img_size=True)
    with tokred.patch(model, tokred.PiToMe(keep=0.75), trace=True) as handle:
        run(model, images(size=96))
        assert handle.trace.tokens_per_layer == [28, 22, 17]
        run(model)
        assert handle.trace.tokens_per_layer == [13, 10, 8]


@pytest.mark.parametrize("name", [PLAIN, ROPE, BEIT])
@torch.no_grad()
def test_intermediate_features_have_the_full_grid(name):
    model = small(name)
    prefix = model.num_prefix_tokens
    with tokred.patch(model, tokred.ToMe(r=3), trace=True) as handle:
        final, features = model.forward_intermediates(images())
        assert [tuple(f.shape) for f in features] == [(2, 48, 4, 4)] * 3
        slot = handle.trace.slot()
        dense = features[-1].flatten(2).transpose(1, 2)
        assert final.shape[1] == 16 + prefix
        for image in range(2):
            for a in range(16):
                same = slot[image, prefix:] == slot[image, prefix + a]
                assert (dense[image][same] == dense[image, a]).all(), "merged patches have the same features"
        short = model.forward_features(images())
        torch.testing.assert_close(handle.trace.unmerge(short), final)


@torch.no_grad()
def test_dropped_patches_keep_the_features_they_had():
    model = small()
    whole = model.forward_intermediates(images(), norm=False)[1]
    with tokred.patch(model, tokred.TopK(layers=(1,), keep=0.5), trace=True) as handle:
        features = model.forward_intermediates(images(), norm=False)[1]
        dropped = handle.trace.patch_slot() < 0
    assert dropped.sum(dim=1).tolist() == [8, 8]
    before, after = (f.flatten(2).transpose(1, 2) for f in (whole[0], features[-1]))
    torch.testing.assert_close(after[dropped], before[dropped])


@torch.no_grad()
def test_average_pooling_counts_a_token_for_every_patch_it_stands_for():
    model = small(GAP)
    assert model.global_pool == "avg"
    with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
        tokens = model.forward_features(images())
        sizes = handle.trace.sizes().unsqueeze(2)
        expected = (tokens * sizes).sum(dim=1) / sizes.sum(dim=1)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), model.fc_norm(expected))
    with tokred.patch(model, tokred.ToMe(r=4, variant="released")):
        plain = model.fc_norm(model.forward_features(images()).mean(dim=1))
        torch.testing.assert_close(run(model), model.head(plain))


@torch.no_grad()
def test_attention_pooling_counts_a_token_for_every_patch_it_stands_for():
    model = small("vit_base_patch16_siglip_224")
    with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
        tokens = model.forward_features(images())
        copied = handle.trace.unmerge(tokens)
        pooled = model.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(pooled, model.fc_norm(model.attn_pool(copied)), atol=1e-5, rtol=1e-4)


def test_a_trace_must_be_asked_for_and_needs_a_forward():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=4)) as handle, pytest.raises(ValueError, match="trace=True"):
        _ = handle.trace
    with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
        with pytest.raises(ValueError, match="No forward has run"):
            _ = handle.trace
        run(model)
        assert len(handle.trace.overlay(images())) == 2


def test_the_trace_follows_every_patch_through_the_layers():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=3), trace=True) as handle:
        run(model)
        trace = handle.trace
    assert trace.tokens_per_layer == [14, 11, 8]
    assert trace.grid == (4, 4)
    for layer, count in enumerate((14, 11, 8)):
        assert trace.sizes(layer).shape == (2, count)
        assert torch.equal(trace.sizes(layer).sum(dim=1), torch.full((2,), 17.0))
        assert torch.equal(trace.source_matrix(layer).sum(dim=2), trace.sizes(layer))
        assert torch.equal(trace.source_matrix(layer).argmax(dim=1), trace.slot(layer))
    with pytest.raises(ValueError, match="5 tokens, the traced forward left 8"):
        trace.unmerge(torch.zeros(2, 5, 4))
