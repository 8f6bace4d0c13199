"""What the methods between image encoder and language model promise, on random images of all layouts."""

from __future__ import annotations

import pytest
import torch

import tokred
from tokred.layout import VisualLayout
from tokred.methods.aim import AIMMerge, merge_round
from tokred.methods.correlation import CorrelationCompression
from tokred.methods.divprune import DivPrune
from tokred.methods.fopru import FoPru
from tokred.methods.globalcom2 import GlobalCom2
from tokred.methods.hired import HiRED
from tokred.methods.prumerge import PruMerge
from tokred.methods.random_visual import RandomVisual
from tokred.methods.uniform import UniformGrid, spread
from tokred.methods.visionzip import VisionZip
from tokred.methods.vtc_cls import VTCCLS
from tokred.methods.zoo_prune import ZOOPrune

from .views import DEPTH, LAYOUTS, PRODUCED_BY, Image, random_view

OWN = {name: method for name, method in tokred.methods("features").items() if method.__module__.startswith("tokred.")}
VARIANTS = {
    **{name: method() for name, method in OWN.items()},
    "fopru rows": FoPru(strategy="row"),
    "vtc_cls one layer": VTCCLS(start=-2),
    "hired released": HiRED(allocation="released"),
    "globalcom2 released": GlobalCom2(variant="released"),
    "zoo_prune image": ZOOPrune(scope="image", directions=8),
    "prumerge plus": PruMerge(plus=True),
    "prumerge by position": PruMerge(order="position"),
    "visionzip by position": VisionZip(order="position"),
    "correlation loose": CorrelationCompression(threshold=0.3, neighbours=1),
    "correlation dropping": CorrelationCompression(threshold=0.3, neighbours=1, merge=False),
    "aim_merge rounds": AIMMerge(rounds=(3, 2)),
}
ADAPTIVE = {"sms", "prumerge", "correlation"}
every_method = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def where(holds):
    """All methods on all layouts for which ``holds(method, layout)``."""
    pairs = [
        pytest.param(method, layout, id=f"{layout_name}-{name}")
        for layout_name, layout in LAYOUTS.items()
        for name, method in VARIANTS.items()
        if holds(method, layout)
    ]
    return pytest.mark.parametrize(("method", "layout"), pairs)


def newlines_of(token_map, layout):
    return layout.newline[token_map.kept[0]]


def works(method, layout):
    """Released HiRED needs chunks of equal size."""
    released = isinstance(method, HiRED) and method.allocation == "released" and layout.mosaic is not None
    return not released or layout.num_patches % (layout.num_partitions - 1) == 0


def in_rounds(method):
    """The rounds of AIM set the number of tokens."""
    return isinstance(method, AIMMerge) and bool(method.rounds)


def has_a_budget(method):
    """Neither the image sets the number of tokens, nor rounds, nor the released ratios of GlobalCom2."""
    released = isinstance(method, GlobalCom2) and method.variant == "released"
    return not (method.name in ADAPTIVE or in_rounds(method) or released)


def keeps_order(method, layout):
    """AIM and some released variants have an order of their own."""
    released = getattr(method, "order", "") == "released" or getattr(method, "variant", "") == "released"
    own = isinstance(method, AIMMerge) or (released and (layout.mosaic is None or isinstance(method, GlobalCom2)))
    return works(method, layout) and not own


@where(works)
def test_a_map_of_one_image_with_at_least_one_token_and_finite_rows(method, layout):
    view = random_view(layout)
    token_map = method.reduce(view)
    assert token_map.kept.shape[0] == 1
    assert token_map.num_tokens == layout.num_tokens
    assert (~newlines_of(token_map, layout)).sum() >= 1
    assert token_map.kept.min() >= 0
    assert token_map.kept.max() < layout.num_tokens
    if token_map.moved.numel():
        assert token_map.into.max() < token_map.num_slots
        assert not layout.newline[token_map.moved[0]].any(), "newlines merge with nobody"
    assert token_map.apply(view.features.unsqueeze(0)).isfinite().all()


@where(lambda method, layout: works(method, layout) and not in_rounds(method))
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9, 1, 7, 20])
def test_no_more_patches_stay_than_were_asked_for(method, layout, keep):
    method = method.with_(keep=keep)
    token_map = method.reduce(random_view(layout))
    found = int((~newlines_of(token_map, layout)).sum())
    partitions, patches = layout.num_partitions, layout.num_partitions * layout.num_patches
    bound = max(partitions, keep if isinstance(keep, int) else round(keep * patches))
    if isinstance(method, FoPru) and method.strategy == "row":
        bound = max(bound, partitions * layout.grid[1])
    if isinstance(method, DivPrune) and isinstance(keep, float):
        bound = max(bound, layout.frames * round(keep * patches / layout.frames))
    if isinstance(method, PruMerge):
        bound = patches if method.plus else bound + partitions  # the extra tokens
    if isinstance(method, GlobalCom2) and isinstance(keep, int):
        bound = max(bound, 2 * keep)  # tiles with much padding and much content
    assert found <= bound


@where(lambda method, _layout: has_a_budget(method))
def test_a_budget_above_all_tokens_keeps_them_all_unless_the_image_sets_the_number(method, layout):
    token_map = method.with_(keep=10_000).reduce(random_view(layout))
    assert int((~newlines_of(token_map, layout)).sum()) == int((~layout.newline).sum())


@where(works)
def test_a_budget_of_nothing_warns_and_keeps_something(method, layout):
    with pytest.warns(UserWarning, match="no visual token"):
        nothing = method.with_(keep=0)
    assert (~newlines_of(nothing.reduce(random_view(layout)), layout)).sum() >= 1


@every_method
@every_layout
def test_the_zero_of_a_method_changes_nothing(method, layout):
    zero = method.zero()
    if zero is None:
        assert method.name == "sms"
        return
    view = random_view(layout)
    token_map = zero.reduce(view)
    assert torch.equal(token_map.kept, torch.arange(layout.num_tokens).unsqueeze(0))
    assert torch.equal(token_map.apply(view.features.unsqueeze(0))[0], view.features)


@where(works)
def test_newlines_all_stay_or_all_go(method, layout):
    view = random_view(layout)
    kept = method.with_(newlines="unpadded").reduce(view).kept[0]
    assert torch.equal(kept[layout.newline[kept]].unique(), layout.newline.nonzero().squeeze(1))
    dropped = method.with_(newlines="drop").reduce(view)
    assert not newlines_of(dropped, layout).any()
    assert torch.equal(dropped.kept[0].sort().values, kept[~layout.newline[kept]].sort().values)


@where(keeps_order)
def test_tokens_stay_in_the_order_of_their_places(method, layout):
    kept = method.reduce(random_view(layout)).kept[0]
    assert (kept.diff() > 0).all()


@where(works)
def test_encoders_without_class_token_are_served(method, layout):
    for registers in (0, 3):
        view = random_view(layout, class_token=False, registers=registers)
        assert method.reduce(view).num_slots >= 1


@every_method
def test_registers_are_no_patches(method):
    layout = LAYOUTS["plain"]
    assert method.reduce(random_view(layout, registers=4)).kept.max() < layout.num_tokens


@where(works)
def test_what_happens_to_an_image_does_not_depend_on_its_batch(method, layout):
    batch = Image(3 + 2 * layout.num_partitions, layout.grid, seed=5)
    together = method.reduce(batch.view(layout, first=3))
    alone = batch.permuted(torch.arange(3, 3 + layout.num_partitions))
    found = method.reduce(alone.view(layout))
    assert torch.equal(found.kept, together.kept)
    assert torch.equal(found.moved, together.moved)
    assert torch.equal(found.into, together.into)


@pytest.mark.parametrize("method", [m for m in VARIANTS.values() if not isinstance(m, RandomVisual)])
def test_partitions_of_a_video_do_not_see_each_other(method):
    layout, order = VisualLayout.plain((4, 4), frames=3), torch.tensor([2, 0, 1])
    image = Image(3, (4, 4), seed=3)
    view, permuted = image.view(layout), image.permuted(order).view(layout)
    slots = method.reduce(view).kept[0]
    others = method.reduce(permuted).kept[0]
    moved_back = order[others // 16] * 16 + others % 16
    assert torch.equal(slots.sort().values, moved_back.sort().values)


@every_method
def test_the_same_image_gives_the_same_map(method):
    layout = LAYOUTS["wide"]
    first, second = method.reduce(random_view(layout)), method.reduce(random_view(layout))
    assert torch.equal(first.kept, second.kept)
    assert torch.equal(first.moved, second.moved)


@every_method
def test_half_precision_is_accepted(method):
    layout = LAYOUTS["wide"]
    view = random_view(layout, dtype=torch.bfloat16)
    token_map = method.reduce(view)
    assert token_map.apply(view.features.unsqueeze(0)).dtype == torch.bfloat16


@every_method
def test_layers_that_are_read_are_announced(method):
    layout, asked = LAYOUTS["wide"], set()
    view = random_view(layout)
    read = view._attention

    def watched(layer):
        asked.add(layer)
        return read(layer)

    view._attention = watched
    method.reduce(view)
    announced = set(method.layers(DEPTH, PRODUCED_BY))
    assert asked <= announced
    assert method.reads_attention == bool(announced)


@pytest.mark.parametrize("name", OWN)
def test_features_of_equal_tokens_are_no_trouble(name):
    for layout in (LAYOUTS["plain"], LAYOUTS["wide"]):
        image = Image(layout.num_partitions, layout.grid)
        image.patches[:], image.heads[:] = 0.5, 0.0
        token_map = OWN[name]().reduce(image.view(layout))
        assert token_map.num_slots >= 1


@every_layout
@pytest.mark.parametrize("method", [AIMMerge(), AIMMerge(keep=0.37), VARIANTS["correlation loose"]])
def test_means_are_means(method, layout):
    view = random_view(layout)
    token_map = method.reduce(view)
    constant = torch.full((1, layout.num_tokens, 3), 2.5)
    torch.testing.assert_close(token_map.apply(constant), constant[:, : token_map.num_slots])
    assert token_map.apply_size().sum() == layout.num_tokens, "nothing is lost"


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.25, 0.4, 0.7, 5, 1])
@pytest.mark.parametrize("layout", [LAYOUTS["plain"], LAYOUTS["odd"], LAYOUTS["frames"]])
def test_aim_reaches_its_count_and_equals_its_rounds(keep, layout):
    method, view = AIMMerge(keep=keep), random_view(layout)
    frames, patches = layout.frames, layout.num_patches
    x = view.features.view(frames, patches, -1)
    for count in method.plan(patches, frames):
        x = merge_round(x, count).apply(x)
    token_map = method.reduce(view)
    wanted = max(1, keep // frames if isinstance(keep, int) else int(keep * patches))
    assert token_map.num_slots == frames * wanted
    found = token_map.apply(view.features.unsqueeze(0))[0]
    if frames == 1:
        torch.testing.assert_close(found, x[0])
    else:
        assert torch.allclose(found.sum(dim=0), x.sum(dim=(0, 1)), atol=1e-4)


def test_aim_halves_whole_images_in_order():
    kept = AIMMerge(keep=0.25).reduce(random_view(LAYOUTS["plain"])).kept[0]
    assert torch.equal(kept, torch.arange(3, 36, 4))


def test_the_counts_of_visionzip_are_those_of_its_paper():
    assert [VisionZip().split(total) for total in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]
    assert VisionZip(contextual=30).split(221) == (191, 30)
    assert VisionZip().split(1) == (1, 0)


def test_layers_of_vtc_cls():
    assert VTCCLS().layers(24, 22) == tuple(range(16, 23))
    assert VTCCLS(start=16).layers(24, 22) == tuple(range(16, 23))
    assert VTCCLS(start=-2).layers(24, 22) == (22,)
    assert VTCCLS().layers(2, 0) == (0,)
    with pytest.raises(ValueError, match="layer 22 of 24"):
        VTCCLS(start=23).layers(24, 22)


def test_fopru_keeps_whole_rows_and_at_least_one():
    for keep, rows in ((0.5, 3), (0.34, 2), (0.01, 1), (13, 2)):
        kept = FoPru(strategy="row", keep=keep).reduce(random_view(LAYOUTS["plain"])).kept[0]
        assert len(kept) == 6 * rows
        assert len((kept // 6).unique()) == rows


def test_released_hired_refuses_chunks_of_unequal_size():
    with pytest.raises(ValueError, match='allocation="paper"'):
        HiRED(allocation="released").reduce(random_view(LAYOUTS["tiles without newlines"]))


def test_hired_gives_more_to_tiles_that_the_whole_image_looks_at():
    layout = LAYOUTS["tiles"]
    score = torch.full((4, 4), 1.0)
    score[2:, 2:] = 9.0
    budgets = HiRED(keep=0.4).budgets(score.flatten(), layout)
    assert budgets.tolist() == [16, 1, 1, 1, 12]


def test_released_globalcom2_repeats_newlines_for_padded_rows():
    layout = LAYOUTS["wide"]
    kept = GlobalCom2(variant="released").reduce(random_view(layout)).kept[0]
    assert int(layout.newline[kept].sum()) == 6 > int(layout.newline.sum())


def test_seeds_decide():
    view = random_view(LAYOUTS["plain"])
    for method in (RandomVisual(), ZOOPrune(directions=1, step=2.0)):
        kept = [method.with_(seed=seed).reduce(view).kept.tolist() for seed in (0, 0, 1, 2, 3)]
        assert kept[0] == kept[1]
        assert any(kept[0] != other for other in kept[2:])


@pytest.mark.parametrize("grid", [(6, 6), (3, 8), (24, 24), (1, 5)])
def test_the_uniform_grid_has_exactly_its_count_and_no_patch_twice(grid):
    for count in range(1, grid[0] * grid[1] + 1):
        index = spread(grid, count)
        assert len(index.unique()) == count
        assert (index.diff() > 0).all()
        assert 0 <= index.min() <= index.max() < grid[0] * grid[1]


def test_the_uniform_grid_is_square_on_squares():
    kept = UniformGrid(keep=0.25).reduce(random_view(VisualLayout.plain((24, 24)))).kept[0]
    assert torch.equal(kept.view(12, 12) // 24, (2 * torch.arange(12) + 1).view(12, 1).expand(12, 12))
    assert torch.equal(kept.view(12, 12) % 24, (2 * torch.arange(12) + 1).expand(12, 12))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("fopru", {"strategy": "column"}),
        ("hired", {"alpha": 1.5}),
        ("hired", {"allocation": "code"}),
        ("globalcom2", {"temperature": 0}),
        ("globalcom2", {"variant": "code"}),
        ("zoo_prune", {"directions": 0}),
        ("zoo_prune", {"scope": "tile"}),
        ("aim_merge", {"rounds": (4, -1)}),
        ("correlation", {"neighbours": 0}),
        ("visionzip", {"contextual": 1.0}),
        ("visionzip", {"order": "score"}),
        ("prumerge", {"neighbours": -1}),
        ("vispruner", {"important": 2.0}),
        *[(name, {"keep": keep}) for name in OWN for keep in (-1, 1.5, float("nan"))],
        *[(name, {"newlines": "some"}) for name in OWN],
    ],
)
def test_knobs_that_mean_nothing_are_refused(name, knobs):
    with pytest.raises(ValueError, match="="):
        tokred.create_method(name, **knobs)


@pytest.mark.parametrize("layer", [6, -7])
def test_layers_that_do_not_exist_are_refused(layer):
    with pytest.raises(ValueError, match="layers 0 to 5"):
        FoPru(layer=layer).layers(DEPTH, PRODUCED_BY)
