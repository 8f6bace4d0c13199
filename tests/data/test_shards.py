"""Shards as webdataset writes them are read in order, at random, and by worker processes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from tokred.data import Batches, ShardImages, load_dataset, transform_for
from tokred.errors import DataError

CFG = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


def write(path: Path, labels: range, **parts: object) -> None:
    """A shard by the library itself; the red of a picture is its label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for label in labels:
            picture = np.full((10, 12, 3), label, dtype=np.uint8)
            sink.write({"__key__": f"deep/{label:04d}", "png": picture, "cls": label, **parts})


def add(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "a") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_a_folder_of_shards_is_one_data_set_in_order(tmp_path: Path):
    write(tmp_path / "b.tar", range(3, 5), txt="a caption")
    write(tmp_path / "a.tar", range(3))
    data = load_dataset(tmp_path)
    assert isinstance(data, ShardImages)
    assert [data[i][1] for i in (4, 0, 2)] == [4, 0, 2]
    image, label = data[3]
    assert (image.size, image.getpixel((0, 0))[0], label) == ((12, 10), 3, 3)
    assert data.classes is None
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    assert load_dataset(tmp_path).classes == ("ant", "bee", "cat", "dog", "eel")


def test_shards_are_found_by_split_by_range_and_by_star(tmp_path: Path):
    for split, count in (("train", 2), ("test", 3)):
        for shard in range(count):
            write(tmp_path / split / f"{split}-{shard:02d}.tar", range(shard, shard + 1))
    assert len(load_dataset(tmp_path, "test")) == 3
    assert len(load_dataset(tmp_path, "train", strict=True)) == 2
    assert len(load_dataset(f"{tmp_path}/test/test-{{00..01}}.tar")) == 2
    assert len(load_dataset(f"{tmp_path}/test/*.tar")) == 3
    with pytest.raises(DataError, match="has no subfolder 'train' of shards"):
        load_dataset(tmp_path / "test", "train", strict=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_skipped_and_named(tmp_path: Path, workers: int):
    path = tmp_path / "a.tar"
    write(path, range(2))
    png = io.BytesIO()
    Image.new("RGB", (9, 9)).save(png, "png")
    add(path, {"7.jpg": b"no picture", "7.cls": b"7", "8.PNG": png.getvalue(), "8.json": b'{"label": 8}'})
    batches = Batches(load_dataset(path, "test", transform_for(CFG)), 2, workers=workers)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 8]
    assert [item.path for item in batches.skipped] == [f"{path}/7"]


def test_what_is_no_shard_is_refused_with_its_name(tmp_path: Path):
    write(tmp_path / "cut.tar", range(3))
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"cut.tar: no readable tar file .*whole and uncompressed"):
        load_dataset(tmp_path / "cut.tar")
    with pytest.raises(DataError, match=r"shard-01.tar: no readable tar file"):
        load_dataset(f"{tmp_path}/shard-{{01..02}}.tar")
    with tarfile.open(tmp_path / "texts.tar", "w"):
        pass
    add(tmp_path / "texts.tar", {"1.txt": b"a caption", "2.jpg": b"a picture without a label"})
    with pytest.raises(DataError, match=r"texts.tar: no sample has a picture"):
        load_dataset(tmp_path / "texts.tar")


@pytest.mark.parametrize("label", [{"cls": b"dog"}, {"json": b'{"caption": "a dog"}'}, {"json": b"{"}])
def test_a_label_that_is_no_number_is_named(tmp_path: Path, label: dict[str, bytes]):
    write(tmp_path / "a.tar", range(1))
    [(ending, content)] = label.items()
    png = io.BytesIO()
    Image.new("RGB", (9, 9)).save(png, "png")
    add(tmp_path / "a.tar", {"9.png": png.getvalue(), f"9.{ending}": content})
    with pytest.raises(DataError, match=rf"a.tar/9.{ending}: holds no number of a class"):
        load_dataset(tmp_path / "a.tar")[1]
