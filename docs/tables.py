"""Writes the tables of the pages of docs/ from the files under docs/results/. Run it as it is; a test runs it, too."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tokred.bench.models import table as speed_table

DOCS = Path(__file__).parent
PAGES = sorted(DOCS.rglob("*.md"))
RESULTS = DOCS / "results"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_tables(page: str) -> str:
    """Return the page with every table made anew."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)


def questions() -> str:
    """Multimodal models: methods in the order of the text, from the dearest point to the cheapest."""
    order = ["unpatched", "fopru", "vtc_cls", "divprune", "visionzip", "aim_merge", "fastv", "random_visual"]
    rows = _rows("vqa.parquet", lambda row: (row["model"], order.index(row["method"]), -row["gmacs"]))
    titles = "method|setting|visual tokens|exact match %|agreement %|GMACs|ideal|prefill|reduction ms|" \
        "prefill unpatched ms|decode ms|KV cache MB"  # fmt: skip
    forms = (
        ("mean_tokens", ".1f"), ("exact_match", ".1f"), ("agreement", ".1f"), ("gmacs", ".3f"),
        ("ideal_speedup", ".2fx"), ("prefill_speedup", ".2fx"), ("reduction_ms", ".1f"),
        ("prefill_ms_unpatched", ".1f"), ("decode_ms", ".1f"), ("kv_cache_mb", ".1f"),
    )  # fmt: skip
    return _table(titles, [[f"`{row['method']}`", row["label"] or "-", *_cells(row, forms)] for row in rows], text=2)


def mosaics() -> str:
    """Exact match of the model with tiles: a row for every method, a column for every share of tokens."""
    shares = ("1.0", "0.5", "0.33", "0.25", "0.11", "0.05")
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in pl.read_parquet(RESULTS / "vqa_next.parquet").to_dicts():
        knobs = dict(knob.split("=") for knob in row["label"].split(", ") if knob)
        share, rest = knobs.pop("keep", None), ", ".join(f"{name}={value}" for name, value in knobs.items())
        if share is not None:
            found.setdefault((row["method"], rest), {})[share] = row
    rows = []
    for (method, rest), by_share in sorted(found.items()):
        row = by_share["0.25"]
        speed = f"{row['prefill_speedup']:.2f}x of {row['ideal_speedup']:.2f}x"
        rows.append([f"`{method}`", rest or "-", *(f"{by_share[share]['exact_match']:.1f}" for share in shares), speed])
    titles = "|".join(["method", "setting", *(f"{float(share):.0%}" for share in shares), "prefill at 25 %"])
    return _table(titles, rows, text=2)


def quarter() -> str:
    """A quarter of the tokens of llava-shapes, on many questions: exact match, its loss, and one standard error."""
    rows = pl.read_parquet(RESULTS / "vqa_quarter.parquet").to_dicts()
    whole = next(row["exact_match"] for row in rows if row["method"] == "unpatched")
    cells = []
    for row in sorted(rows, key=lambda row: -row["exact_match"]):
        error = (row["exact_match"] * (100 - row["exact_match"]) / row["images"]) ** 0.5
        lost = f"{whole - row['exact_match']:.1f}" if row["label"] else "-"
        numbers = [f"{row['exact_match']:.1f}", lost, f"{error:.1f}", f"{row['agreement']:.1f}"]
        cells.append([f"`{row['method']}`", row["label"] or "-", *numbers])
    return _table("method|setting|exact match %|points lost|standard error|agreement %", cells, text=2)


def thresholds() -> str:
    """ATP's trained modules in llava-shapes: exact match and visual tokens behind every layer."""
    found = json.loads((RESULTS / "learn_atp.json").read_text())
    layers = found["visual_tokens_per_layer"]
    rows = [
        ["unpatched", f"{found['exact_match_unpatched']:.1f}", *[f"{found['visual_tokens']:.0f}"] * len(layers)],
        ["`atp`", f"{found['exact_match']:.1f}", *(f"{tokens:.1f}" for tokens in layers)],
    ]
    return _table("|".join(["method", "exact match %", *(f"layer {i}" for i in range(len(layers)))]), rows)


def tokens() -> str:
    """Tokenizers at every number of tokens."""
    rows = _rows("rate_distortion.parquet", lambda row: (row["model"], row["bits"]))
    titles = "tokenizer|tokens|bits|PSNR dB|decoded PSNR dB|SSIM|feature distance|Frechet distance|probe %|" \
        "encoded/s|decoded/s"  # fmt: skip
    forms = (
        ("tokens", ".3g"), ("bits", ".0f"), ("psnr", ".2f"), ("psnr_drawn", ".2f"), ("ssim", ".3f"),
        ("feature_distance", ".3f"), ("frechet_distance", ".1f"), ("probe_top1", ".1f"),
        ("encode_images_per_second", ".0f"), ("decode_images_per_second", ".1f"),
    )  # fmt: skip
    return _table(titles, [[f"`{row['model']}`", *_cells(row, forms)] for row in rows])


def retrieval() -> str:
    """Captions and pictures found by a CLIP, every method from the dearest point to the cheapest."""
    order = ["unpatched", "tome", "pitome", "evit", "random"]
    rows = _rows("retrieval.parquet", lambda row: (order.index(row["method"]), -row["gmacs"]))
    titles = "method|setting|GMACs|image to text R@1|R@5|text to image R@1|R@5|zero-shot %|agreement %|" \
        "speed-up|images/s"  # fmt: skip
    forms = (
        ("gmacs", ".4f"), ("image_to_text_r1", ".1f"), ("image_to_text_r5", ".1f"), ("text_to_image_r1", ".1f"),
        ("text_to_image_r5", ".1f"), ("top1", ".1f"), ("agreement", ".1f"), ("speedup", ".2fx"),
        ("images_per_second", ".0f"),
    )  # fmt: skip
    return _table(titles, [[f"`{row['method']}`", row["label"] or "-", *_cells(row, forms)] for row in rows], text=2)


def attention() -> str:
    """Ways to proportional attention on the CPU."""
    record = json.loads((RESULTS / "proportional_cpu.json").read_text())
    found = {(row["dtype"], row["tokens"], row["way"]): row for row in record["results"]}
    places = list(dict.fromkeys((row["dtype"], row["tokens"]) for row in record["results"]))
    rows = [
        [*map(str, place), *(f"{found[(*place, way)]['over_plain']:.2f}" for way in ("mask", "keys", "values"))]
        for place in places
    ]
    return _table("type|tokens|mask|channels of keys|channel of values", rows)


def narrow() -> str:
    """ToMe's own knob on the narrow models that ship."""
    rows = _rows("quickstart.parquet", lambda row: (row["model"], -row["gmacs"]))
    forms = (("ideal_speedup", ".2fx"), ("speedup", ".2fx"))
    own = [row for row in rows if row["method"] == "tome" and row["label"].startswith("r=")]
    cells = [[f"`{row['model']}`", row["label"], *_cells(row, forms)] for row in own]
    return _table("model|setting|ideal|measured", cells, text=2)


def search() -> str:
    """Searched schedules of Zero-TPrune beside its own law."""
    record = json.loads((RESULTS / "search_zerotprune_test.json").read_text())
    forms = (("gmacs", ".3f"), ("top1", ".2f"), ("agreement", ".2f"))
    rows = [[row["schedule"], *_cells(row, forms)] for row in record["results"]]
    return _table("schedule|GMACs|test top-1 %|agreement %", rows)


def learned() -> str:
    """Learned schedules of DiffRate beside ToMe and hand-made ones, best first."""
    record = json.loads((RESULTS / "learn_diffrate.json").read_text())
    rows = sorted(record["results"], key=lambda row: -row["top1"])
    cells = [
        [row["group"], row["name"], f"{100 * row['share']:.1f}", f"{row['top1']:.2f}",
         " ".join(map(str, [min(counts) for counts in zip(*row["tracks"].values(), strict=True)])) if "tracks" in row
         else ""]
        for row in rows
    ]  # fmt: skip
    return _table("method|schedule|MACs %|test top-1 %|tokens behind each block", cells, text=2)


def finetuned() -> str:
    """EViT before and after fine-tuning."""
    record = json.loads((RESULTS / "finetune_evit.json").read_text())
    forms = (("gmacs", ".3f"), ("top1", ".2f"))
    return _table("model|GMACs|test top-1 %", [[row["model"], *_cells(row, forms)] for row in record["results"]])


def methods() -> str:
    """Every method for encoders on one model, each from the dearest point to the cheapest."""
    rows = _rows("methods.parquet", lambda row: (row["method"] != "unpatched", row["method"], -row["gmacs"]))
    forms = (
        ("gmacs", ".3f"), ("top1", ".1f"), ("agreement", ".1f"), ("ideal_speedup", ".2fx"), ("speedup", ".2fx"),
    )  # fmt: skip
    cells = [[f"`{row['method']}`", _setting(row), *_cells(row, forms)] for row in rows]
    return _table("method|setting|GMACs|top-1 %|agreement %|ideal|speed-up", cells, text=2)


def tome() -> str:
    """Speed of ToMe beside the ratio of the MACs."""
    return _tome("bench_tome.json")


def tome_heap_kept() -> str:
    """The same, where the allocator never gives memory back to the system."""
    return _tome("bench_tome_heap_kept.json")


def _tome(name: str) -> str:
    return "\n".join(speed_table(json.loads((RESULTS / name).read_text()))) + "\n"


def load() -> str:
    """What the machinery of a sweep costs and survives."""
    record = json.loads((RESULTS / "sweep_load.json").read_text())
    found, kills = record["overhead"], record["kills"]
    rows = [
        ["points of the long sweep, all finished", f"{found['points']:,}"],
        ["load of the machine before (2 cores)", f"{record['load_before']:.1f}"],
        ["time of the points themselves", f"{found['work_s']:.0f} s"],
        ["beside it", f"{found['overhead_percent']:.1f} %, {found['overhead_ms_a_point']:.0f} ms a point"],
        ["of that, processor time", f"{found['cpu_overhead_ms_a_point']:.1f} ms a point"],
        [
            "memory after a tenth, and at the end",
            f"{found['memory_mb_after_a_tenth']:.0f} MB, {found['memory_mb_at_the_end']:.0f} MB",
        ],
        ["kills at random moments", f"{kills['kills']} in {kills['points']} points"],
        [
            "finished points lost, repeated",
            f"{kills['finished_points_lost']}, {kills['finished_points_repeated']}",
        ],
    ]
    if scaling := record.get("scaling"):
        speed = f"{scaling['speedup']:.2f}x, efficiency {scaling['efficiency']:.2f}"
        rows.append(["Ray, two workers over one (median of pairs)", speed])
        rows.append(["two bare processes over one, at the same time", f"{scaling['bare_speedup']:.2f}x"])
    return _table("what|measured", rows)


_ALL = (
    questions, quarter, thresholds, mosaics, retrieval, tokens, attention, narrow, search, learned, methods, finetuned,
    tome, tome_heap_kept, load,
)  # fmt: skip
TABLES: dict[str, Callable[[], str]] = {table.__name__: table for table in _ALL}


def _rows(file: str, order: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    return sorted(pl.read_parquet(RESULTS / file).to_dicts(), key=order)


def _setting(row: dict[str, Any]) -> str:
    """The label of a point, learned parts in short."""
    return re.sub(r"weights=[\w-]+/([\w.-]+)", "learned parts", row["label"]) or "-"


def _cells(row: dict[str, Any], forms: Iterable[tuple[str, str]]) -> list[str]:
    return [format(row[name], form.rstrip("x")) + "x" * form.endswith("x") for name, form in forms]


def _table(titles: str, rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    heads = titles.split("|")
    rule = ["---"] * text + ["---:"] * (len(heads) - text)
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(write_tables(page.read_text()))
