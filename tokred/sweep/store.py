"""Results on disk: one Parquet file for every finished point, written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tokred.errors import DataError, TokredError
from tokred.extra import need

# column -> type, in the order of the table; every column may be empty, as most are where a point failed
COLUMNS = {
    "key": "string",
    "status": "string",  # finished, failed
    "error": "string",  # class: message
    "note": "string",
    "model": "string",
    "data": "string",
    "method": "string",
    "label": "string",
    "tower": "string",  # of a CLIP, that was reduced, and that cost and speed are of
    "images": "int64",
    "skipped": "int64",
    "skipped_files": "list<string>",
    "texts": "int64",  # different captions
    "top1": "float64",  # percent
    "top5": "float64",
    "ece": "float64",  # expected calibration error in percent, 15 bins
    "worst_class": "string",  # that lost most against the unpatched model; empty where none lost
    "worst_class_drop": "float64",  # percent of its images
    "image_to_text_r1": "float64",  # percent of the pictures that find one of their captions first
    "image_to_text_r5": "float64",  # among the first five
    "text_to_image_r1": "float64",  # percent of the captions
    "text_to_image_r5": "float64",
    "knn_top1": "float64",  # percent, of the 20 nearest features that the unpatched model gives to training images
    "feature_cosine": "float64",  # of features with those of the unpatched model, mean over images
    "paper_top1": "float64",  # what a paper says about this point, as the specification quotes it
    "exact_match": "float64",  # percent of the questions that get exactly the expected answer
    "score": "float64",  # of a suite of lmms-eval, on its own scale
    "metric": "string",  # what that is
    "score_stderr": "float64",  # where lmms-eval gives it
    "scores": "string",  # all metrics of the suite, as JSON
    "agreement": "float64",  # percent of the images that get the unpatched model's class or caption, or of the answers
    "speedup": "float64",  # median over pairs of unpatched / patched seconds
    "speedup_low": "float64",
    "speedup_high": "float64",
    "ideal_speedup": "float64",
    "images_per_second": "float64",
    "images_per_second_unpatched": "float64",
    "texts_per_second": "float64",  # the same for a text tower
    "texts_per_second_unpatched": "float64",
    "latency_p50_ms": "float64",  # of one batch
    "latency_p95_ms": "float64",
    "latency_p99_ms": "float64",
    "latency_p50_ms_unpatched": "float64",
    "latency_p95_ms_unpatched": "float64",
    "latency_p99_ms_unpatched": "float64",
    "peak_memory_mb": "float64",
    "peak_memory_mb_unpatched": "float64",
    "memory_measure": "string",
    "rss_mb": "float64",  # of the whole process at the peak of a forward
    "joules_per_image": "float64",  # of the first batch
    "joules_per_image_unpatched": "float64",
    "throughput_batch_sizes": "list<int64>",
    "throughput": "list<float64>",  # images per second at those sizes; empty where memory did not hold a batch
    "throughput_unpatched": "list<float64>",
    "throughput_speedup": "list<float64>",  # medians over pairs
    "gmacs": "float64",  # of multimodal models: of the language model, for one prompt
    "gmacs_unpatched": "float64",
    "mean_tokens": "float64",  # of multimodal models: visual ones
    "tokens_per_layer": "list<int64>",
    "visual_tokens": "float64",  # at the entry of the language model, newlines included, mean over prompts
    "newline_tokens": "float64",  # newlines among them
    "vision_ms": "float64",  # of one batch, as all times
    "vision_ms_unpatched": "float64",
    "reduction_ms": "float64",  # a part of the prefill
    "prefill_ms": "float64",  # from the features of the images to the logits of the first word
    "prefill_ms_unpatched": "float64",
    "prefill_speedup": "float64",  # median over pairs
    "prefill_speedup_low": "float64",
    "prefill_speedup_high": "float64",
    "decode_ms": "float64",  # for one word of every prompt
    "decode_ms_unpatched": "float64",
    "decode_speedup": "float64",
    "tokens_per_second": "float64",  # encoding images and reading the prompts included
    "tokens_per_second_unpatched": "float64",
    "kv_cache_mb": "float64",  # keys and values of the batch behind the prefill
    "kv_cache_mb_unpatched": "float64",
    "tokens": "float64",  # of a picture, mean
    "bits": "float64",  # the same, by the number of ids
    "psnr": "float64",  # dB, of the estimate, as pixel_error; all below of pictures as they are decoded
    "pixel_error": "float64",  # mean absolute, pixels in [0, 1]
    "psnr_drawn": "float64",  # dB
    "ssim": "float64",
    "feature_distance": "float64",  # one less the cosine of vit-fmnist's tokens
    "frechet_distance": "float64",  # of vit-fmnist's features
    "probe_top1": "float64",  # percent, of a linear probe: encoders: on their features; tokenizers: on vit-fmnist's
    "probe_top1_originals": "float64",
    "encode_images_per_second": "float64",
    "encode_speedup": "float64",  # over all tokens, as decode_speedup
    "decode_images_per_second": "float64",
    "strip": "binary",  # PNG of the first pictures, decoded
    "strip_originals": "binary",  # the same of the originals, in the row of the tokenizer itself
    "worst": "binary",  # PNG of images whose class became wrong, with what the method did to them
    "worst_captions": "list<string>",
    "adapter": "string",
    "batch_size": "int64",
    "dtype": "string",
    "threads": "int64",
    "seed": "int64",
    "device": "string",
    "device_name": "string",
    "tokred": "string",
    "torch": "string",
    "timm": "string",
    "lmms_eval": "string",  # where it asked
    "python": "string",
    "revision": "string",  # of git, where tokred runs from a checkout
    "date": "string",
    "seconds": "float64",  # that the whole point took
    "config": "string",  # the full configuration as JSON
    "predictions": "list<int64>",  # of the unpatched model, so that a resumed sweep need not repeat it
    "answers": "list<string>",  # the same for questions
    "right": "binary",  # a bit for every image or question, so that points can be compared pair by pair
}
# what tables do not want
_LONG = ("predictions", "answers", "right", "strip", "strip_originals", "worst", "worst_captions")


class StorageError(TokredError):
    """A result cannot be written; the message says which, why, and what is safe."""


class Store:
    """The results in one folder.

    A file is written beside its place and moved there when it is whole; a file that cannot be read counts as absent.
    """

    def __init__(self, folder: str | Path) -> None:
        need("pyarrow")  # now, not after the first point
        self.folder = Path(folder)
        self.points = self.folder / "points"

    def path(self, key: str) -> Path:
        """Where the result of a point lies."""
        return self.points / f"{key}.parquet"

    def write(self, row: Mapping[str, Any]) -> None:
        """Keep the result of one point, in the place of an earlier one.

        Raises:
            StorageError: the disk is full or the folder cannot be written; earlier results are intact.
        """
        content = _parquet(row)
        path = self.path(row["key"])
        try:
            self.points.mkdir(parents=True, exist_ok=True)
            _write_whole(path, content)
        except OSError as error:
            raise StorageError(self._complaint(error)) from error

    def require_writable(self) -> None:
        """Look whether results can be written, before anything is measured.

        Raises:
            StorageError: they cannot.
        """
        try:
            self.points.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.points):
                pass
        except OSError as error:
            raise StorageError(self._complaint(error)) from error

    def read(self) -> dict[str, dict[str, Any]]:
        """All rows by key; half-written files are passed over."""
        rows = {path.stem: row for path in sorted(self.points.glob("*.parquet")) if (row := _read(path)) is not None}
        return {key: row for key, row in rows.items() if row.get("key") == key}

    def finished(self) -> dict[str, dict[str, Any]]:
        """The rows of points that succeeded, by key."""
        return {key: row for key, row in self.read().items() if row.get("status") == "finished"}

    def _complaint(self, error: OSError) -> str:
        safe = 0
        with suppress(OSError):
            safe = len(list(self.points.glob("*.parquet")))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"The disk is full: a result could not be written to {self.points}. "
                f"The {safe} results written before are intact; free some space and go on with --resume."
            )
        reason = error.strerror or str(error)
        return (
            f"A result could not be written to {self.points} ({reason}). The {safe} results written before are intact; "
            "choose another folder with --out, or see who may write to this one."
        )


def read_results(folder: str | Path, *, predictions: bool = False) -> Any:
    """Read the results of a sweep as a polars ``DataFrame``, one row a point.

    Args:
        folder: what ``--out`` named.
        predictions: keep the columns with the classes and answers that the unpatched model gives, with a bit for
            each right one, and the pictures that a tokenizer drew.

    Raises:
        DataError: there are no results.
        TokredError: polars or pyarrow is not installed.
    """
    pl, pa = need("polars"), need("pyarrow")
    rows = list(Store(folder).read().values())
    if not rows:
        raise DataError(f"{folder} holds no results of a sweep. Run: tokred sweep quickstart --out {folder}")
    frame = pl.from_arrow(pa.Table.from_pylist([_complete(row) for row in rows], schema=_schema()))
    return frame if predictions else frame.drop(*_LONG)


def _complete(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in COLUMNS}


@cache
def _schema() -> Any:
    pa = need("pyarrow")
    kinds = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "list<string>": pa.list_(pa.string()),
        "list<int64>": pa.list_(pa.int64()),
        "list<float64>": pa.list_(pa.float64()),
        "binary": pa.binary(),
    }
    return pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


def _parquet(row: Mapping[str, Any]) -> bytes:
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    unknown = row.keys() - COLUMNS.keys()
    if unknown:
        raise ValueError(f"A row has no column {min(unknown)!r}.")
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([_complete(row)], schema=_schema())
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False)  # which a single row has no use for
    return sink.getvalue().to_pybytes()


def _read(path: Path) -> dict[str, Any] | None:
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    try:
        rows = pq.read_table(pa.BufferReader(path.read_bytes())).to_pylist()
    except (OSError, pa.ArrowException):
        return None
    return rows[0] if len(rows) == 1 else None


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the place, under a name that no other process uses, and move there."""
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
