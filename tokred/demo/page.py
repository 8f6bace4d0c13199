"""What all tabs are built from: a chooser of pictures, refusals in words, tables."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

from PIL import Image

from tokred.demo.uploads import read_pictures
from tokred.errors import TokredError

SECONDS_KEPT = 3600
"""How long pictures and results of a visitor stay in memory and on disk."""
_MOST_OFFERED = 16


class PictureChooser:
    """Thumbnails to choose from, and a button for pictures of one's own, which come first then.

    Attributes:
        pictures: state, a tuple of the chosen pictures: one of the thumbnails, or all that were uploaded.
    """

    def __init__(self, pictures: Sequence[Image.Image], label: str, most: int = 1) -> None:
        import gradio as gr

        self._most = most
        self.pictures = gr.State(tuple(pictures[:1]), time_to_live=SECONDS_KEPT)
        self._offered = gr.State(tuple(pictures), time_to_live=SECONDS_KEPT)
        self._thumbnails = gr.Gallery(
            list(pictures), label=label, columns=4, height=270, format="png", object_fit="contain", buttons=[],
            allow_preview=False, interactive=False, selected_index=0, elem_classes=["pixels", "thumbs", "choose"],
        )  # fmt: skip
        several = f"up to {most} pictures" if most > 1 else "a picture"
        self._upload = gr.UploadButton(
            f"Upload {several}", file_types=["image"], file_count="multiple" if most > 1 else "single", size="md"
        )

    def offer(self, control: Any, pictures_of: Callable[[Any], Sequence[Image.Image]]) -> Any:
        """Offer other pictures whenever ``control`` changes, and choose the first; return the event."""
        import gradio as gr

        def show(value):
            offered = tuple(pictures_of(value))
            return offered[:1], offered, gr.update(value=list(offered), selected_index=0)

        return control.input(show, control, [self.pictures, self._offered, self._thumbnails])

    def then(self, work: Callable[..., Any], inputs: Any, outputs: Any) -> None:
        """Run ``work`` whenever other pictures are chosen."""
        import gradio as gr

        def pick(offered, event: gr.SelectData):  # gradio reads the annotation
            return (offered[event.index],)

        @saying_why
        def add(paths, offered):
            brought = tuple(read_pictures(paths if isinstance(paths, list) else [paths], self._most))
            offered = (*brought, *offered)[:_MOST_OFFERED]
            return brought, offered, gr.update(value=list(offered), selected_index=0)

        picked = self._thumbnails.select(pick, self._offered, self.pictures, show_progress="hidden")
        added = self._upload.upload(
            add, [self._upload, self._offered], [self.pictures, self._offered, self._thumbnails]
        )
        for event in (picked, added):
            event.success(work, inputs, outputs)


def saying_why(work: Callable[..., Any]) -> Callable[..., Any]:
    """Show what tokred refuses as a sentence on the page, from a function or a generator."""
    import gradio as gr

    def refusal(error: Exception) -> Exception:
        return gr.Error(str(error), duration=20, title="That does not work", print_exception=False)

    @wraps(work)
    def result(*args: Any) -> Any:
        try:
            return work(*args)
        except (TokredError, ValueError) as error:
            raise refusal(error) from error

    @wraps(work)
    def results(*args: Any) -> Iterator[Any]:
        try:
            yield from work(*args)
        except (TokredError, ValueError) as error:
            raise refusal(error) from error

    return results if inspect.isgeneratorfunction(work) else result


def table(head: Sequence[object], *rows: Sequence[object]) -> str:
    """A table in Markdown; numbers stand right.

    >>> print(table(("", "tokens"), ("all", 197)))
    |  | tokens |
    |:---|---:|
    | all | 197 |
    """
    lines = [head, *rows]
    written = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([written[0], "|:---|" + "---:|" * (len(head) - 1), *written[1:]])
