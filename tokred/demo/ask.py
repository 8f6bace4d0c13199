"""Tab "Ask the picture": one question, answered from all visual tokens and from those that a method keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tokred.bench.multimodal import DECODED, Phases, time_phases
from tokred.data import VQAExample
from tokred.demo import choices, examples, shelf
from tokred.demo.page import PictureChooser, saying_why, table
from tokred.errors import ConfigError
from tokred.evaluate.vqa import prompt_of
from tokred.methods import RandomVisual
from tokred.multimodal_assets import list_multimodal_models
from tokred.patching import patch

MOST_PICTURES = 4
MOST_WORDS = 64
LONGEST_QUESTION = 400
POSITIONS = {"those in the whole prompt": "original", "counted anew": "renumbered"}


@dataclass(frozen=True, eq=False)
class Asked:
    """A question put to a model twice: as it is, and with a method in it."""

    plain: Any
    kept: Any
    handle: Any
    processor: Any
    inputs: Any
    pictures: tuple[Image.Image, ...]

    @torch.inference_mode()
    def answers(self) -> Iterator[tuple[str, str]]:
        """Both answers as they grow."""
        said = ("", "")
        for news in zip_longest(self._stream(self.plain), self._stream(self.kept)):
            said = tuple(old if new is None else old + new for old, new in zip(said, news, strict=True))
            yield said[0], said[1]

    def overlays(self) -> list[Image.Image]:
        """The pictures with the patches that the last layer of the language model still sees."""
        return self.handle.trace.overlay(self._as_seen())

    def counts(self) -> tuple[list[int], int]:
        """Visual tokens that every layer sees with the method, and how many there were."""
        trace = self.handle.trace
        return trace.tokens_per_layer[0], sum(image.all_tokens for image in trace.visual_tokens)

    def time(self, rounds: int = 3) -> Phases:
        """Time both in turn; one visitor at a time."""
        with shelf.CLOCK:
            return time_phases(self.plain, self.kept, self.handle, self.inputs, rounds=rounds)

    def _stream(self, model: Any) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def write() -> None:
            try:
                model.generate(**self.inputs, streamer=streamer, do_sample=False, max_new_tokens=MOST_WORDS)
            finally:
                streamer.end()  # an error, too, must end the loop below

        with ThreadPoolExecutor(max_workers=1) as worker:
            written = worker.submit(write)
            yield from streamer
            written.result()

    def _as_seen(self) -> Any:
        """What the processor cut the pictures to, where there is one square of it a picture."""
        pixels = self.inputs.get("pixel_values")
        if pixels is not None and pixels.ndim == 4 and len(pixels) == len(self.pictures):
            return pixels
        return self.pictures


def ask(
    name: str,
    method: str,
    keep: float,
    pictures: Sequence[Image.Image],
    question: str,
    positions: str = "original",
) -> Asked:
    """Load a model twice, and put a method into one of them.

    Args:
        positions: of the kept tokens, for methods on features; in the language model they are always the original ones.

    Raises:
        TokredError: no such model, a model that the method does not go into, or no question.
    """
    question = " ".join(question.split())
    if not question or len(question) > LONGEST_QUESTION:
        raise ConfigError(f"Write a question of up to {LONGEST_QUESTION} letters (found {len(question)}).")
    offered = choices.prompt_methods()
    if method not in offered:
        raise ConfigError(f"{method!r} is none of the methods of this tab: {', '.join(offered)}.")
    (plain, processor), (kept, _) = shelf.multimodal(name), shelf.multimodal(name)
    images = tuple(pil_to_tensor(picture.convert("RGB")) for picture in pictures)
    text = prompt_of(processor, VQAExample(images, question, ""))
    inputs = processor(images=list(images), text=text, return_tensors="pt")
    place = {"positions": positions} if offered[method].place == "features" else {}
    chosen = [offered[method](keep=float(keep), **place)]
    if chosen[0].place == "decoder":
        chosen.insert(0, RandomVisual(keep=1.0))  # keeps all, and notes where they come from, for the pictures
    return Asked(plain, kept, patch(kept, *chosen), processor, inputs, tuple(pictures))


def say_counts(layers: Sequence[int], every: int) -> str:
    """Visual tokens layer by layer, in words."""
    if len(set(layers)) == 1:
        return f"**{layers[0]} of {every}** visual tokens are left in all {len(layers)} layers of the language model."
    seen = ", ".join(map(str, layers))
    return f"Of **{every}** visual tokens the layers of the language model see {seen}."


def say_times(phases: Phases) -> str:
    """Milliseconds by phase and bytes of the cache, as a table."""

    def row(title: str, pairs: Any, calls: int = 1) -> tuple[str, ...]:
        base, other = 1e3 * pairs.base.median / calls, 1e3 * pairs.other.median / calls
        return title, f"{base:.1f} ms", f"{other:.1f} ms", f"{pairs.ratio:.2f}x"

    before, after = phases.cache_bytes
    return table(
        ("", "all tokens", "kept tokens", "speed-up"),
        row("vision (the same for both)", phases.vision),
        row("prefill, choosing included", phases.prefill),
        row("decode, one word", phases.decode, DECODED),
        ("KV cache behind the prompt", f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB", f"{after / before:.0%}"),
    )


def add_tab(opened: Any) -> None:
    """Build the tab; ``opened`` is the event of its being looked at."""
    import gradio as gr

    names, methods = list_multimodal_models(), tuple(choices.prompt_methods())
    gr.Markdown(
        "The same question, answered twice: by a model that reads **every** token of the picture, and by one that "
        "reads only those that a method **keeps**. llava-shapes knows one coloured shape and sixty words, "
        'llava-next-shapes mosaics of such pictures ("what is in row 1 column 2?").'
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            chooser = PictureChooser(examples.asked(), "Picture", most=MOST_PICTURES)
            question = gr.Dropdown(
                examples.QUESTIONS, value=examples.QUESTIONS[0], label="Question", allow_custom_value=True,
                info="choose one or write your own",
            )  # fmt: skip
            model = gr.Dropdown(
                names, value=examples.MODEL, label="Model", allow_custom_value=True,
                info="or an id of the hub, such as organisation/model, when online",
            )  # fmt: skip
            method = gr.Dropdown(methods, value="vispruner", label="Method")
            keep = gr.Slider(0.02, 1.0, 0.1, step=0.02, label="keep: share of the visual tokens that stay")
            positions = gr.Radio(
                list(POSITIONS.items()), value="original", label="Positions of what stays",
                info="between layers of the language model always those in the whole prompt",
            )  # fmt: skip
            send = gr.Button("Ask", variant="primary")
        with gr.Column(scale=8, min_width=300):
            with gr.Row():
                first = gr.Textbox(label="Answer from all tokens", interactive=False, elem_classes="answer")
                second = gr.Textbox(label="Answer from the kept tokens", interactive=False, elem_classes="answer")
            kept = gr.Gallery(
                label="What the last layer still sees (dark: dropped)", columns=3, height=310, format="png",
                fit_columns=False, object_fit="contain", interactive=False, elem_classes=["pixels", "thumbs"],
                buttons=["fullscreen"],
            )  # fmt: skip
            counts = gr.Markdown()
            times = gr.Markdown(min_height=170)

    @saying_why
    def answer(model_name, method_name, share, pictures, text, where):
        asked = ask(model_name, method_name, share, pictures, text, where)
        for one, other in asked.answers():
            yield one, other, gr.skip(), gr.skip(), gr.skip()
        yield gr.skip(), gr.skip(), asked.overlays(), say_counts(*asked.counts()), "Measuring ..."
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), say_times(asked.time())

    def begin(*given):
        *question_and_all, said = given
        yield from () if said else answer(*question_and_all)  # once; whoever comes back finds what was said

    inputs = [model, method, keep, chooser.pictures, question, positions]
    outputs = [first, second, kept, counts, times]
    send.click(answer, inputs, outputs)
    chooser.then(answer, inputs, outputs)
    opened(begin, [*inputs, first], outputs)
