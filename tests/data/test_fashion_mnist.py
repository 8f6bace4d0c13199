"""The IDX files, the sample that ships, and the registry."""

import gzip
import struct

import numpy as np
import pytest
import torch

from tokred.data import dataset_names, fashion_mnist, fashion_mnist_sample, load_dataset
from tokred.data.fashion_mnist import DEBIAN_FOLDER, read_idx
from tokred.data.tensors import Normalize, augment
from tokred.errors import DataError


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_an_idx_file_comes_back_as_it_was_written(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", array)
    assert torch.equal(read_idx(tmp_path / "a.gz"), torch.from_numpy(array))


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x01\x00\x00\x00\x09\x01"]
)
def test_a_file_that_is_no_idx_or_cut_off_is_named(tmp_path, content):
    with gzip.open(tmp_path / "bad.gz", "wb") as file:
        file.write(content)
    with pytest.raises(DataError, match=r"bad\.gz"):
        read_idx(tmp_path / "bad.gz")


def test_a_file_that_is_not_gzipped_is_named(tmp_path):
    (tmp_path / "bad.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"bad\.gz"):
        read_idx(tmp_path / "bad.gz")


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(DataError, match="t10k-images"):
        fashion_mnist("test", folder=tmp_path)


def test_the_shipped_sample_is_class_balanced_bytes():
    sample = fashion_mnist_sample()
    assert sample.images.shape == (2000, 1, 28, 28)
    assert sample.images.dtype == torch.uint8
    assert torch.equal(sample.labels.bincount(), torch.full((10,), 200))


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_shipped_sample_is_the_first_two_hundred_of_each_class_of_the_test_set():
    whole, sample = fashion_mnist("test"), fashion_mnist_sample()
    assert len(whole) == 10_000
    for label in range(10):
        assert torch.equal(whole.images[whole.labels == label][:200], sample.images[sample.labels == label])


def test_the_transform_is_applied_to_every_picture():
    data = load_dataset("fashion-mnist-sample", transform=Normalize((0.5,), (0.5,)))
    image, label = data[3]
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1
    assert isinstance(label, int)


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-sample"])
def test_an_unknown_split_is_named(name):
    with pytest.raises(DataError, match="'valid'"):
        load_dataset(name, "valid")


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        load_dataset("fashion_mnist")
    assert "fashion-mnist" in dataset_names()


def test_augmenting_only_shifts_and_mirrors():
    images = torch.zeros(64, 1, 8, 8)
    images[:, :, 3, 2] = 1
    out = augment(images, torch.Generator().manual_seed(0), padding=2)
    assert torch.equal(out.sum((1, 2, 3)), torch.ones(64))  # nothing is lost, nothing is added
    places = {tuple(place[2:].tolist()) for place in out.nonzero()}
    assert len(places) > 10
    assert torch.equal(augment(images, torch.Generator(), padding=0, flip=False), images)
