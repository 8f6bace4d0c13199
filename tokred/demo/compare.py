"""Tab "Compare": a small sweep over methods and budgets, drawn while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tokred.assets import list_models
from tokred.demo import shelf
from tokred.demo.page import SECONDS_KEPT, saying_why, table
from tokred.demo.uploads import MAX_PICTURES, read_pictures
from tokred.errors import ConfigError
from tokred.methods import untrained_methods
from tokred.sweep import Document, Progress, SweepSpec, parse_spec, plot_results, read_results, run_sweep

SAMPLE = "fashion-mnist-sample"
SAMPLE_IMAGES = 64
BUDGETS = ("80%", "65%", "55%", "45%")
FOLDER = "pictures"
"""What the written sweep calls the uploaded pictures: a folder with one folder in it."""
X_AXES = {"GMACs": "gmacs", "measured speed-up": "speedup"}
_MOST_POINTS = 24


@dataclass(frozen=True, eq=False)
class Stage:
    """A sweep, as far as it is.

    Attributes:
        rows: the results.
        plot: a picture of them.
        files: results as Parquet, the sweep as YAML, the plot as a page; empty until all is measured.
    """

    rows: tuple[dict[str, Any], ...]
    plot: Path
    files: tuple[Path, ...] = ()


def plan(name: str, methods: Sequence[str], budgets: Sequence[str], data: str, images: int) -> SweepSpec:
    """A sweep of every method at every budget.

    Raises:
        TokredError: nothing to compare, too much of it, or a model that does not exist.
    """
    shelf.require_name(name, list_models())
    if not methods or not budgets:
        raise ConfigError("Choose at least one method and one budget.")
    if len(methods) * len(budgets) > _MOST_POINTS:
        found = f"{len(methods)} methods at {len(budgets)} budgets"
        raise ConfigError(f"{found} are {len(methods) * len(budgets)} points; up to {_MOST_POINTS} are measured here.")
    content = {
        "models": [name],
        "data": [data],
        "images": images,
        "batch_size": min(images, 32),
        "rounds": 4,
        "methods": [{"method": method, "budget": {"grid": list(budgets)}} for method in methods],
    }
    return parse_spec(Document(content, "this page"))


def run(
    name: str,
    methods: Sequence[str],
    budgets: Sequence[str],
    pictures: Sequence[Image.Image],
    x: str,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Stage]:
    """Measure method after method, and draw after each; without pictures, on a sample that has labels.

    Only one visitor measures at a time.

    Args:
        name: of the model.
        methods: names.
        budgets: shares of the MACs.
        pictures: of the visitor.
        x: column for the horizontal axis.
        folder: empty; everything is written there.
        report: told how it goes.

    Raises:
        TokredError: as :func:`plan`; or nothing could be measured.
    """
    data = _write(pictures, folder / FOLDER) if pictures else SAMPLE
    images = len(pictures) or SAMPLE_IMAGES
    whole = plan(name, methods, budgets, data, images)
    total = len(whole.points())
    y, rows = ("agreement" if pictures else "top1"), []
    for count in range(1, len(methods) + 1):
        part = plan(name, methods[:count], budgets, data, images)
        with shelf.CLOCK:
            rows = run_sweep(part, folder, resume=count > 1, report=lambda now: report(replace(now, total=total)))
        plot, page, *_ = plot_results(folder, x, y)
        yield Stage(tuple(rows), plot)
    table_file, sweep_file = folder / "results.parquet", folder / "sweep.yaml"
    read_results(folder).drop("config").write_parquet(table_file)
    sweep_file.write_text(as_yaml(whole), encoding="utf-8")
    yield Stage(tuple(rows), plot, (table_file, sweep_file, page))


def as_yaml(spec: SweepSpec) -> str:
    """The sweep as a file for ``tokred sweep``."""
    content = spec.model_dump(mode="json", exclude_defaults=True)
    own = content["data"] != [SAMPLE]
    content["data"] = [FOLDER] if own else [SAMPLE]
    hint = f"# Put your pictures into {FOLDER}/all, then: tokred sweep sweep.yaml\n" if own else ""
    return hint + yaml.safe_dump(content, sort_keys=False)


def say_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The results as a table, and in words what could not be measured."""
    done = [row for row in rows if row["status"] == "finished"]
    has_labels = any(row["top1"] is not None for row in done)
    lines = [
        (
            f"{row['method']} {row['label'].removeprefix('budget=')}",
            *([f"{row['top1']:.1f} %"] if has_labels else []),
            f"{row['agreement']:.1f} %",
            f"{row['gmacs'] / row['gmacs_unpatched']:.0%}",
            f"{row['speedup']:.2f}x",
        )
        for row in done
    ]
    failed = [f"- {row['method']} {row['label']}: {row['error']}" for row in rows if row["status"] != "finished"]
    head = ("", *(["top-1"] if has_labels else []), "agreement", "MACs", "speed-up")
    return "\n".join([table(head, *lines), "", *failed])


def _write(pictures: Sequence[Image.Image], folder: Path) -> str:
    (folder / "all").mkdir(parents=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / "all" / f"{index:02d}.png")
    return str(folder)


def add_tab() -> None:
    """Build the tab."""
    import gradio as gr

    names = list_models()
    gr.Markdown(
        "Which method loses least, and which is really faster? Every point is one method at one budget, measured now, "
        "in turn with the unpatched model."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            model = gr.Dropdown(
                names, value=names[0], label="Model", allow_custom_value=True, info="or any ViT of timm, when online"
            )
            methods = gr.Dropdown(
                untrained_methods(), value=["tome", "pitome", "topk", "random"], multiselect=True, label="Methods"
            )
            budgets = gr.CheckboxGroup(BUDGETS, value=["65%", "45%"], label="Budgets: share of the MACs")
            x = gr.Radio(list(X_AXES.items()), value="gmacs", label="Horizontal axis")
            pictures = gr.State((), time_to_live=SECONDS_KEPT)
            brought = gr.Gallery(
                label="Your pictures", columns=6, height=120, format="png", object_fit="contain", interactive=False,
                allow_preview=False, visible=False, buttons=[],
            )  # fmt: skip
            about = gr.Markdown(f"On {SAMPLE_IMAGES} labelled test pictures of Fashion-MNIST.")
            upload = gr.UploadButton(
                f"Upload up to {MAX_PICTURES} pictures of your own", file_types=["image"], file_count="multiple",
                size="md",
            )  # fmt: skip
            start = gr.Button("Compare", variant="primary")
        with gr.Column(scale=8, min_width=300):
            plot = gr.Image(
                label="What stays over what it costs; the grey line joins the points that no other beats",
                alt_text="Pareto plot of the results",
                type="filepath", format="png", interactive=False, height=430, buttons=["download", "fullscreen"],
            )  # fmt: skip
            rows = gr.Markdown("Press **Compare**: it takes a few seconds for every method.")
            with gr.Row():
                files = [gr.DownloadButton(title, interactive=False, size="md", min_width=160)
                         for title in ("Results (Parquet)", "Sweep (YAML)", "Plot (HTML)")]  # fmt: skip

    @saying_why
    def bring(paths):
        read = tuple(read_pictures(paths))
        say = f"On your {len(read)} pictures: does the model still say what it says with all tokens?"
        return read, gr.update(value=list(read), visible=True), say

    @saying_why
    def compare(model_name, method_names, shares, own, axis, progress=gr.Progress()):  # noqa: B008 - gradio's way
        def report(now: Progress) -> None:
            progress(now.completed / now.total, desc=str(now.point))

        with tempfile.TemporaryDirectory(prefix="tokred-") as place:
            for stage in run(model_name, method_names, shares, own, axis, Path(place), report):
                ready = stage.files or (None,) * len(files)
                yield stage.plot, say_rows(stage.rows), *(gr.update(value=f, interactive=bool(f)) for f in ready)

    upload.upload(bring, upload, [pictures, brought, about])
    inputs = [model, methods, budgets, pictures, x]
    start.click(compare, inputs, [plot, rows, *files], concurrency_id="clock", show_progress_on=plot)
