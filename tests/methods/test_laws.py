"""What every registered method promises about its counts and its maps, on plain tensors."""

import pytest
import torch

import tokred
from tokred import LayerView

SHAPE = tokred.ModelShape.vit(depth=6, dim=48, heads=4, patches=36)
METHODS = sorted(tokred.methods())


def view(stay, *, batch=3, tokens=37, prefix=1, seed=0, valid=None, index=slice(None), module=None):
    """A view of clustered random tokens; ``index`` picks images."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 6, 48, generator=g)
    pick = torch.randint(0, 6, (batch, tokens), generator=g)
    x = centres.gather(1, pick.unsqueeze(2).expand(-1, -1, 48)) + 0.3 * torch.randn(batch, tokens, 48, generator=g)
    heads = torch.randn(3, batch, 4, tokens, 12, generator=g) + x.reshape(batch, tokens, 4, 12).transpose(1, 2)
    x, (q, k, v) = x[index], heads[:, index]
    return LayerView(
        x,
        stay=stay,
        num_prefix=prefix,
        layer=1,
        depth=6,
        valid=None if valid is None else valid[index],
        module=module,
        signals={"keys": k.mean(1), "head_keys": k, "q": q, "k": k, "v": v, "before": x},
    )


def stay_for(method, tokens=37, prefix=1):
    return first_stage(method, tokens, prefix)[0]


@torch.no_grad()
def first_stage(method, tokens=37, prefix=1):
    """The counts of the first block that reduces, and its learnable part, if there is one, far from its start."""
    shape = tokred.ModelShape.vit(depth=6, dim=48, heads=4, patches=tokens - prefix, num_prefix=prefix)
    plan, modules = method.plan(shape), method.modules(shape)
    before = (tokens, *plan.tokens(tokens))
    layer = next(i for i in range(6) if before[i + 1] < before[i] == tokens)
    module = modules[str(layer)].eval() if modules is not None and str(layer) in modules else None
    for parameter in [] if module is None else module.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return plan.stay(layer), module


@pytest.mark.parametrize("name", METHODS)
def test_the_zero_of_a_method_removes_nothing(name):
    zero = tokred.create_method(name).zero()
    assert zero is not None
    assert zero.plan(SHAPE).tokens(37) == (37,) * 6
    assert zero.cost(SHAPE).macs == tokred.cost(SHAPE).macs


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_prefix_tokens_stay_in_front_and_the_count_is_the_schedules(name, prefix):
    method = tokred.create_method(name)
    stay, module = first_stage(method, 36 + prefix, prefix)
    token_map = method.reduce(view(stay, tokens=36 + prefix, prefix=prefix, module=module))
    assert torch.equal(token_map.kept[:, :prefix], torch.arange(prefix).expand(3, -1))
    if method.adaptive:
        assert token_map.num_slots <= min(stay.values())
    else:
        assert token_map.num_slots == min(stay.values())
    assert (token_map.slot[:, :prefix] == torch.arange(prefix)).all()
    assert not (token_map.slot[:, prefix:] < prefix)[token_map.slot[:, prefix:] >= 0].any(), "nothing joins the prefix"


@pytest.mark.parametrize("name", METHODS)
def test_what_happens_to_an_image_does_not_depend_on_its_batch(name):
    method = tokred.create_method(name)
    stay, module = first_stage(method)
    together = method.reduce(view(stay, module=module))
    for image in range(3):
        alone = method.reduce(view(stay, index=slice(image, image + 1), module=module))
        assert torch.equal(alone.slot[0], together.slot[image])


@pytest.mark.parametrize("name", METHODS)
def test_the_same_input_gives_the_same_map(name):
    method = tokred.create_method(name)
    stay, module = first_stage(method)
    first, second = (method.reduce(view(stay, module=module)) for _ in range(2))
    assert torch.equal(first.slot, second.slot)


@pytest.mark.parametrize("name", METHODS)
def test_equal_tokens_are_no_trouble_and_ties_go_to_the_lowest_index(name):
    method = tokred.create_method(name)
    ones = torch.ones(2, 4, 37, 12)
    stay, module = first_stage(method)
    flat = LayerView(
        torch.ones(2, 37, 48),
        stay=stay,
        module=module,
        num_prefix=1,
        layer=1,
        depth=6,
        signals={"keys": ones.mean(1), "head_keys": ones, "q": ones, "k": ones, "v": ones},
    )
    token_map = method.reduce(flat)
    assert torch.isfinite(token_map.apply(flat.x)).all()
    assert torch.equal(token_map.slot[0], token_map.slot[1])
    if name == "topk":
        assert torch.equal(token_map.kept[0], torch.arange(token_map.num_slots))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ats"}))
def test_padding_never_changes_what_happens_to_real_tokens(name, seed):
    g = torch.Generator().manual_seed(seed)
    method = tokred.create_method(name)
    stay, module = first_stage(method)
    full = view(stay, tokens=37, module=module)
    short = method.reduce(full)
    staying = 0 if isinstance(short, tokred.SoftMap) else 6  # padding keeps slots of its own, but in mixtures
    offset = 300 * torch.randn(1, generator=g)  # so large that a padding token looks at one single token

    def pad(t, dim):
        filler = offset + torch.randn(*t.shape[:dim], 6, *t.shape[dim + 1 :], generator=g)
        return torch.cat([t, filler], dim=dim)

    valid = torch.arange(43).expand(3, -1) < 37
    bias = torch.zeros(3, 1, 1, 43).masked_fill(~valid[:, None, None], -torch.inf)
    padded = LayerView(
        pad(full.x, 1),
        stay={track: count + staying for track, count in stay.items()},
        module=module,
        num_prefix=1,
        layer=1,
        depth=6,
        valid=valid,
        bias=bias,
        signals={
            "keys": pad(full.keys, 1),
            "head_keys": pad(full.head_keys, 2),
            "q": pad(full.q, 2),
            "k": pad(full.k, 2),
            "v": pad(full.v, 2),
        },
    )
    long = method.reduce(padded)
    alive = lambda m: m.slot[:, :37] >= 0  # noqa: E731
    same_group = lambda m: m.slot[:, :37, None] == m.slot[:, None, :37]  # noqa: E731
    if name != "random":  # its draw depends on the number of tokens
        assert torch.equal(alive(long), alive(short))
        assert torch.equal(same_group(long), same_group(short))
    assert long.num_slots == short.num_slots + staying
    in_real = torch.zeros(3, long.num_slots, dtype=torch.bool).scatter(1, long.slot[:, :37].clamp(min=0), alive(long))
    padding_slots = long.slot[:, 37:]
    assert not in_real.gather(1, padding_slots.clamp(min=0))[padding_slots >= 0].any(), "padding joined"


def test_random_is_reproducible_and_changes_with_seed_and_layer():
    stay = stay_for(tokred.Random())
    base = tokred.Random().reduce(view(stay)).kept
    assert torch.equal(base, tokred.Random().reduce(view(stay, seed=5)).kept), "it does not look at the image"
    assert not torch.equal(base, tokred.Random(seed=1).reduce(view(stay)).kept)


def test_a_stage_that_the_model_does_not_have_is_refused():
    with pytest.raises(tokred.ScheduleMismatchError, match=r"Blocks \[9\] do not exist"):
        tokred.TopK(layers=(3, 9)).plan(SHAPE)
    with pytest.raises(tokred.ScheduleMismatchError, match="2 shares for the 3 stages"):
        tokred.EViT(keep=(0.5, 0.4)).plan(SHAPE)


def test_pitome_modes_follow_the_variant():
    released, mae = tokred.PiToMe(variant="released"), tokred.PiToMe(variant="released", recipe="mae")
    assert [released.mode(layer, 5) for layer in range(5)] == ["order"] * 3 + ["protect"] * 2
    assert [mae.mode(layer, 4) for layer in range(4)] == ["protect"] * 2 + ["order"] * 2
    assert {tokred.PiToMe().mode(layer, 5) for layer in range(5)} == {"protect"}
    assert (tokred.PiToMe().proportional, released.proportional) == (True, False)


def test_an_int_keep_asks_for_that_many_patches_at_the_end():
    shape = tokred.ModelShape.vit(depth=12, dim=48, heads=4, patches=196)
    for name in ("diffrate", "topk", "random", "zerotprune", "ats"):
        assert tokred.create_method(name, keep=40).plan(shape).tokens(197)[-1] == 41
    assert tokred.EViT(keep=40).plan(shape).tokens(197)[-1] == 42, "the fused token comes on top"
    assert abs(tokred.PiToMe(keep=40).plan(shape).tokens(197)[-1] - 41) <= 6
