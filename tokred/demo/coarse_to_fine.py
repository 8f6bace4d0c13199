"""Tab "Coarse to fine": a picture written as a row of ids, drawn again from the first k of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from tokred.data.square import fit, square
from tokred.demo import examples, shelf
from tokred.demo.page import SECONDS_KEPT, PictureChooser, saying_why
from tokred.tokenizer_assets import list_tokenizers
from tokred.tokenizers.base import PAD, Tokenizer, lengths, pixel_error, to_bytes

_SMALLEST_SIDE = 256
_STEPS = {"steps": 20, "guidance": 2.0}


@dataclass(frozen=True, eq=False)
class Written:
    """A picture as a tokenizer reads it.

    Attributes:
        tokenizer: its name.
        image: [1, C, H, W] bytes.
        most: how many tokens there are.
    """

    tokenizer: str
    image: Tensor
    most: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture from some of its ids.

    Attributes:
        estimate: as near to the original as the ids say.
        picture: decoded in steps, with details made up where the ids leave them open.
        error: mean absolute error of the estimate, pixels in [0, 1].
        tokens: how many ids that are.
        bits: what they take.
    """

    estimate: Image.Image
    picture: Image.Image
    error: float
    tokens: int
    bits: float


@torch.inference_mode()
def write(name: str, picture: Image.Image) -> Written:
    """Write the middle square of a picture; one that is small enough is taken whole."""
    model = shelf.tokenizer(name)
    if max(picture.size) <= model.side:
        image = fit(pil_to_tensor(picture)[None], model.side, model.channels)
    else:
        image = square(picture, model.side, model.channels)[None]
    return Written(name, image, model.num_tokens)


@torch.inference_mode()
def draw(written: Written, tokens: int) -> Drawn:
    """Draw from ``tokens`` ids, or fewer where the tokenizer finds that the picture needs no more."""
    model = shelf.tokenizer(written.tokenizer)
    return _drawn(model, written, model.encode(written.image, tokens=min(max(int(tokens), 1), written.most)))


@torch.inference_mode()
def draw_for(written: Written, error: float) -> Drawn:
    """Draw from as many ids as the tokenizer suggests for a mean absolute error."""
    model = shelf.tokenizer(written.tokenizer)
    return _drawn(model, written, model.encode(written.image, quality=error))


def _drawn(model: Tokenizer, written: Written, codes: Tensor) -> Drawn:
    estimate, tokens = model.estimate(codes), int((codes != PAD).sum())
    return Drawn(
        estimate=as_picture(to_bytes(estimate)[0]),
        picture=as_picture(to_bytes(_decode(model, codes))[0]),
        error=pixel_error(model.prepare(written.image), estimate).item(),
        tokens=tokens,
        bits=tokens * model.bits_per_token,
    )


@torch.inference_mode()
def strip(written: Written) -> list[tuple[Image.Image, str]]:
    """The original, then what 1, 2, 4, ... tokens draw, with captions."""
    model = shelf.tokenizer(written.tokenizer)
    counts = lengths(written.most)
    pictures = to_bytes(_decode(model, [model.encode(written.image, tokens=k)[0] for k in counts]))
    drawn = [(as_picture(p), f"{k} token{'s' * (k > 1)}") for p, k in zip(pictures, counts, strict=True)]
    return [(as_picture(written.image[0]), "original"), *drawn]


def as_picture(image: Tensor) -> Image.Image:
    """Bytes [C, H, W] as a picture that can be looked at: every pixel a square."""
    picture = to_pil_image(image)
    scale = -(-_SMALLEST_SIDE // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def say_length(drawn: Drawn) -> str:
    """Bits and error in words."""
    return f"**{drawn.tokens} tokens, {drawn.bits:.0f} bits.** Mean absolute error of the estimate: {drawn.error:.3f}."


def say_suggestion(error: float, drawn: Drawn, most: int) -> str:
    """What the tokenizer suggests, in words."""
    if drawn.error <= error:
        return f"For an error of at most {error:g} this picture needs **{drawn.tokens}** tokens."
    if drawn.tokens == most:
        return f"Not even all {most} tokens bring this picture to an error of {error:g}."
    return (
        f"For an error of about {error:g} the tokenizer suggests **{drawn.tokens}** tokens; here they do not reach it."
    )


def _decode(model: Tokenizer, codes: Any) -> Tensor:
    knobs = {name: value for name, value in _STEPS.items() if name in model.decode_knobs}
    return model.decode(codes, generator=torch.Generator().manual_seed(0), **knobs)  # the same every time


def _examples(name: str) -> tuple[Image.Image, ...]:
    return examples.clothes() if shelf.tokenizer(name).channels == 1 else examples.shapes()


def add_tab(opened: Any) -> None:
    """Build the tab; ``opened`` is the event of its being looked at."""
    import gradio as gr

    names = list_tokenizers()
    first = next((name for name in names if shelf.tokenizer(name).channels == 3), names[0])
    most = shelf.tokenizer(first).num_tokens
    gr.Markdown(
        "A tokenizer writes a picture as a short row of ids, the most important first: any beginning of the row "
        "draws the whole picture. Turn **k** up and see what every token adds. A KARL (`karl-shapes`) says by itself "
        "how many tokens an error takes, and may leave some of **k** out."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            chooser = PictureChooser(_examples(first), "Picture")
            name = gr.Dropdown(names, value=first, label="Tokenizer")
            tokens = gr.Slider(1, most, 8, step=1, label="k: tokens that are drawn")
            error = gr.Slider(0.02, 0.2, 0.1, step=0.005, label="Suggest k for this mean absolute error")
            suggestion = gr.Markdown()
        with gr.Column(scale=8, min_width=300):
            with gr.Row():
                look: dict[str, Any] = {
                    "type": "pil", "format": "png", "interactive": False, "height": 260, "elem_classes": "pixels",
                    "buttons": ["download"], "min_width": 140,
                }  # fmt: skip
                original = gr.Image(label="Original", alt_text="The original", **look)
                estimate = gr.Image(label="What k tokens say", alt_text="The estimate from k tokens", **look)
                picture = gr.Image(label="Decoded in steps", alt_text="The picture decoded from k tokens", **look)
            length = gr.Markdown()
            row = gr.Gallery(
                label="From one token to all of them, decoded in steps", columns=7, height=190, format="png",
                object_fit="contain", interactive=False, elem_classes=["pixels", "thumbs"], buttons=["fullscreen"],
            )  # fmt: skip
    state = gr.State(None, time_to_live=SECONDS_KEPT)

    @saying_why
    def begin(tokenizer, pictures, wanted_error):
        written = write(tokenizer, pictures[0])
        slider, *rest = propose(written, wanted_error)
        slider["maximum"] = written.most
        return written, as_picture(written.image[0]), strip(written), slider, *rest

    def begin_once(written, *given):
        return begin(*given) if written is None else [gr.skip()] * len(filled)

    def show(drawn):
        return drawn.estimate, drawn.picture, say_length(drawn)

    @saying_why
    def redraw(written, k):
        return (None, None, "") if written is None else show(draw(written, k))

    @saying_why
    def propose(written, wanted_error):
        if written is None:
            return [gr.skip()] * 5
        drawn = draw_for(written, wanted_error)
        return gr.update(value=drawn.tokens), say_suggestion(wanted_error, drawn, written.most), *show(drawn)

    drawing = [estimate, picture, length]
    start, filled = [name, chooser.pictures, error], [state, original, row, tokens, suggestion, *drawing]
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
    tokens.input(redraw, [state, tokens], drawing, **quick)
    error.input(propose, [state, error], [tokens, suggestion, *drawing], **quick)
    chooser.offer(name, _examples).success(begin, start, filled)
    chooser.then(begin, start, filled)
    opened(begin_once, [state, *start], filled)
