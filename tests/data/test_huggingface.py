"""Pictures in Parquet files and in what ``datasets`` saved, as files of the hub have them."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tokred.data import Batches, HuggingFaceImages, load_dataset, transform_for
from tokred.errors import DataError, TokredError

CFG = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def rows(count: int, *, broken: int | None = None) -> datasets.Dataset:
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(count)]
    types = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    encoded = [types["image"].encode_example(image) for image in images]
    if broken is not None:
        encoded[broken] = {"bytes": encoded[broken]["bytes"][:60], "path": None}
    return datasets.Dataset.from_dict({"image": encoded, "label": [i % 2 for i in range(count)]}, features=types)


def write(folder: Path) -> str:
    """Two splits as the hub has them."""
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 4), ("test", 5)):
        rows(count).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_a_folder_of_parquet_files_has_its_splits_and_its_classes(tmp_path: Path):
    name = write(tmp_path / "set")
    test, train = load_dataset(name, "test"), load_dataset(name, "train", strict=True)
    assert isinstance(test, HuggingFaceImages)
    assert (len(test), len(train), test.classes) == (5, 4, ("cat", "dog"))
    image, label = test[3]
    assert (image.size, image.mode, label) == ((12, 9), "RGB", 1)
    with pytest.raises(DataError, match=r"the split 'val' cannot be read .*train.*test|.*test.*train"):
        load_dataset(name, "val")


@pytest.mark.parametrize("workers", [0, 1])
def test_one_file_is_of_any_split_and_a_broken_picture_is_skipped_and_named(tmp_path: Path, workers: int):
    path = tmp_path / "some.parquet"
    rows(5, broken=2).to_parquet(path)
    batches = Batches(load_dataset(path, "test", transform_for(CFG)), 2, workers=workers)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 1, 0]
    assert [item.path for item in batches.skipped] == [f"{path}, test 2"]
    with pytest.raises(DataError, match=r"has no split 'train'"):
        load_dataset(path, "train", strict=True)


def test_what_was_saved_to_a_disk_is_read_with_splits_and_without(tmp_path: Path):
    datasets.DatasetDict({"train": rows(2), "test": rows(3)}).save_to_disk(tmp_path / "both")
    rows(4).save_to_disk(tmp_path / "one")
    assert len(load_dataset(tmp_path / "both", "test")) == 3
    assert len(load_dataset(tmp_path / "one", "test")) == 4
    with pytest.raises(DataError, match=r"has no split 'val'. It has: train, test"):
        load_dataset(tmp_path / "both", "val")
    with pytest.raises(DataError, match=r"has no split 'train'. It has: none"):
        load_dataset(tmp_path / "one", "train", strict=True)


def test_columns_without_types_are_found_by_their_names_and_words_become_classes(tmp_path: Path):
    content = [one["bytes"] for one in rows(3).cast_column("image", datasets.Image(decode=False))["image"]]
    table = pa.table({"id": [7, 8, 9], "image": content, "label": ["dog", "ant", "dog"]})
    pq.write_table(table, tmp_path / "plain.parquet")
    data = load_dataset(tmp_path / "plain.parquet")
    assert data.classes == ("ant", "dog")
    assert [data[i][1] for i in range(3)] == [1, 0, 1]
    pq.write_table(table.rename_columns(["id", "picture", "label"]), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"no column with pictures among id, picture, label. Call it 'image'"):
        load_dataset(tmp_path / "other.parquet")


def test_hidden_labels_are_no_class(tmp_path: Path):
    hidden = rows(2).remove_columns("label").add_column("label", [-1, -1])
    hidden.to_parquet(tmp_path / "hidden.parquet")
    with pytest.raises(DataError, match=r"test 0: has no label.*split: validation"):
        load_dataset(tmp_path / "hidden.parquet")[0]


def test_what_is_not_there_and_a_missing_library_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"there is no such file"):
        load_dataset("nowhere.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken.parquet: the split 'test' cannot be read"):
        load_dataset(tmp_path / "broken.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TokredError, match=r"need datasets, which is not installed .* pip install 'tokred\[data\]'"):
        load_dataset("hf:owner/name")


def test_a_name_of_the_hub_goes_to_the_library_with_its_subset(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(*where: str, split: str) -> datasets.Dataset:
        asked.append((*where, split))
        return rows(2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    load_dataset("hf:owner/name")
    load_dataset("hf:owner/name:small", "validation")
    assert asked == [("owner/name", "test"), ("owner/name", "small", "validation")]
