"""Tab "Merge & prune": which patches a method merges or drops, block by block, and what the model still says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokred.assets import list_models
from tokred.bench.machine import device_name
from tokred.bench.timing import Comparison, compare
from tokred.cost import cost
from tokred.data import transform_for
from tokred.demo import choices, examples, shelf
from tokred.demo.page import SECONDS_KEPT, PictureChooser, saying_why, table
from tokred.methods import Method, untrained_methods
from tokred.patching import patch
from tokred.schedule import Schedule
from tokred.trace import Trace
from tokred.viz import draw_overlay

BATCH = 16
"""Copies of the picture that are timed at once."""
_SHOWN_CLASSES = 3


@dataclass(frozen=True, eq=False)
class Reduced:
    """What a method did to one picture.

    Attributes:
        overlays: the picture before the first block, and behind every block.
        tokens: how many there are at these places, prefix included.
        before: probabilities of classes, all tokens.
        after: the same with the method.
        gmacs: without and with it.
    """

    overlays: tuple[Image.Image, ...]
    tokens: tuple[int, ...]
    before: dict[str, float]
    after: dict[str, float]
    gmacs: tuple[float, float]


@torch.inference_mode()
def reduce_picture(name: str, method: Method, picture: Image.Image) -> Reduced:
    """Run a model on a picture with and without a method.

    Raises:
        TokredError: no such model, or one that the method does not go into; a budget out of reach.
    """
    model = shelf.encoder(name)
    image = transform_for(model)(picture)[None]
    before = model(image)
    with patch(model, method, trace=True) as handle:
        after = model(image)
        trace, shape = handle.trace, handle.tower.shape
    return Reduced(
        overlays=tuple(_overlays(trace, image)),
        tokens=(trace.state.num_initial, *trace.tokens_per_layer),
        before=_probabilities(model, before),
        after=_probabilities(model, after),
        gmacs=(cost(shape).gmacs, _cost(method, trace).gmacs),
    )


@torch.inference_mode()
def time_pictures(name: str, method: Method, picture: Image.Image, rounds: int = 7) -> Comparison:
    """Time :data:`BATCH` copies of a picture, without and with a method in turn; one visitor at a time."""
    plain, patched = shelf.encoder(name), shelf.encoder(name)
    images = transform_for(plain)(picture)[None].repeat(BATCH, 1, 1, 1)
    patch(patched, method, verify=False)
    with shelf.CLOCK:
        return compare(lambda: plain(images), lambda: patched(images), rounds=rounds, max_seconds=10)


def _overlays(trace: Trace, image: Tensor) -> list[Image.Image]:
    untouched = torch.arange(trace.num_patches)[None]
    first = draw_overlay(image, untouched, trace.grid)
    return first + [trace.overlay(image, layer)[0] for layer in range(trace.shape.depth)]


def _cost(method: Method, trace: Trace) -> Any:
    """Of the schedule; where the method decides for every picture, of the tokens that this one had."""
    if not method.adaptive:
        return method.cost(trace.shape)
    return method.cost(trace.shape, Schedule(dict.fromkeys(method.tracks, tuple(trace.tokens_per_layer))))


def _probabilities(model: nn.Module, logits: Tensor) -> dict[str, float]:
    """The likeliest classes, by name where the model has names."""
    names = _class_names(model)
    best = logits[0].float().softmax(0).topk(min(_SHOWN_CLASSES, logits.shape[1]))
    return {names.get(c, f"class {c}"): p for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)}


def _class_names(model: nn.Module) -> dict[int, str]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    if config.get("classes"):
        return dict(enumerate(config["classes"]))
    from timm.data import ImageNetInfo, infer_imagenet_subset  # pyright: ignore[reportPrivateImportUsage]

    subset = infer_imagenet_subset(config)
    info = ImageNetInfo(subset) if subset else None
    return {c: info.index_to_description(c) for c in range(info.num_classes())} if info else {}


def say_counts(found: Reduced) -> str:
    """Tokens and MACs as a table."""
    first, last, (before, after) = found.tokens[0], found.tokens[-1], found.gmacs
    return table(
        ("", "all", "reduced", ""),
        ("tokens at the end", first, last, f"{last / first:.0%}"),
        ("GMACs", f"{before:.3f}", f"{after:.3f}", f"{after / before:.0%}"),
    )


def say_speed(pairs: Comparison) -> str:
    """What was measured, and how."""
    low, high = pairs.quartiles
    return (
        f"**{pairs.ratio:.2f}x the speed**: {BATCH / pairs.base.median:.0f} → {BATCH / pairs.other.median:.0f} "
        f"images/s.  \nBoth models in turn, {len(pairs.ratios)} pairs of batches of {BATCH}, middle half {low:.2f}x to "
        f"{high:.2f}x; {device_name('cpu')}, CPU threads: {torch.get_num_threads()}."
    )


def add_tab(opened: Any) -> None:
    """Build the tab; ``opened`` is the event of its being looked at."""
    import gradio as gr

    names, dial = list_models(), choices.dial_of("tome", choices.BUDGET)
    gr.Markdown(
        "A vision transformer cuts a picture into patches, one token each. Walk through its blocks: **outlined** "
        "regions were merged and have their mean colour, **dark** patches were dropped."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            chooser = PictureChooser(examples.clothes(), "Picture")
            model = gr.Dropdown(
                names, value=names[0], label="Model", allow_custom_value=True, info="or any ViT of timm, when online"
            )
            method = gr.Dropdown(untrained_methods(), value="tome", label="Method")
            knob = gr.Radio([d.knob for d in choices.dials("tome")], value=dial.knob, label="Set by")
            strength = gr.Slider(dial.minimum, dial.maximum, dial.value, step=dial.step, label=dial.label)
        with gr.Column(scale=5, min_width=300):
            overlay = gr.Image(
                label="What is left of the picture", alt_text="The picture as its tokens", type="pil", format="png",
                interactive=False, height=430, elem_classes=["pixels", "whole"], buttons=["download", "fullscreen"],
            )  # fmt: skip
            layer = gr.Slider(0, 8, 8, step=1, label="Behind block (0: before the first)")
            at_layer = gr.Markdown()
        with gr.Column(scale=4, min_width=300):
            before = gr.Label(label="Prediction from all tokens", num_top_classes=_SHOWN_CLASSES, show_heading=False)
            after = gr.Label(label="Prediction from what is left", num_top_classes=_SHOWN_CLASSES, show_heading=False)
            counts = gr.Markdown()
            speed = gr.Markdown(min_height=90)
            time = gr.Button("Measure the speed")
    walk = gr.State((), time_to_live=SECONDS_KEPT)
    asked = [model, method, knob, strength, chooser.pictures]
    shown = [walk, layer, overlay, at_layer, before, after, counts, speed]

    @saying_why
    def show(model_name, method_name, knob_name, value, pictures):
        found = reduce_picture(model_name, choices.set_method(method_name, knob_name, value), pictures[0])
        steps, last = tuple(zip(found.overlays, found.tokens, strict=True)), len(found.tokens) - 1
        place = gr.update(maximum=last, value=last)
        return steps, place, *look(steps, last), found.before, found.after, say_counts(found), ""

    @saying_why
    def measure(model_name, method_name, knob_name, value, pictures):
        return say_speed(time_pictures(model_name, choices.set_method(method_name, knob_name, value), pictures[0]))

    def look(steps, place):
        if not steps:
            return None, ""
        drawn, tokens = steps[min(int(place), len(steps) - 1)]
        return drawn, f"{tokens} of {steps[0][1]} tokens"

    def turn(method_name, knob_name):
        new = choices.dial_of(method_name, knob_name)
        knobs = [d.knob for d in choices.dials(method_name)]
        slider = gr.update(minimum=new.minimum, maximum=new.maximum, step=new.step, value=new.value, label=new.label)
        return gr.update(choices=knobs, value=new.knob), slider

    for control in (method, knob):
        control.input(turn, [method, knob], [knob, strength]).then(show, asked, shown)
    model.input(show, asked, shown)
    strength.input(show, asked, shown, trigger_mode="always_last")
    chooser.then(show, asked, shown)
    layer.input(look, [walk, layer], [overlay, at_layer], show_progress="hidden", trigger_mode="always_last")
    time.click(measure, asked, speed, concurrency_id="clock", concurrency_limit=1)
    opened(show, asked, shown).success(measure, asked, speed, concurrency_id="clock")
