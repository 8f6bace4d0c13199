"""Folders of pictures: labels by class folder, and broken files do not end a run."""

import pytest
import torch
from PIL import Image
from torch import nn

from tokred.data import Batches, ImageFolder, Unreadable, load_dataset, transform_for
from tokred.errors import DataError

CFG = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (12, 10), (colour, i, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def spoil(folder):
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    whole = (folder / "dog" / "2.png").read_bytes()
    (folder / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    return {str(folder / "cat" / "1.png"), str(folder / "dog" / "2.png")}


def test_labels_follow_the_sorted_class_folders(folder):
    (folder / "dog" / "notes.txt").write_text("no picture by its name")
    data = ImageFolder(folder)
    assert data.classes == ("cat", "dog")
    assert [data[i][1] for i in range(len(data))] == [0] * 4 + [1] * 4


def test_named_classes_fix_the_labels(folder):
    data = ImageFolder(folder, classes=("dog", "bird", "cat"))
    assert sorted({data[i][1] for i in range(len(data))}) == [0, 2]
    with pytest.raises(DataError, match="dog"):
        ImageFolder(folder, classes=("cat",))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_skipped_counted_and_named(folder, workers):
    bad = spoil(folder)
    batches = Batches(ImageFolder(folder, transform_for(CFG)), 3, workers=workers)
    for _ in range(2):  # each pass counts anew
        labels = torch.cat([labels for _, labels in batches])
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert {item.path for item in batches.skipped} == bad
        assert all(item.reason for item in batches.skipped)


def test_a_batch_of_unreadable_pictures_only_is_left_out(folder):
    spoil(folder)
    batches = Batches(ImageFolder(folder, transform_for(CFG)), 1)
    assert len(list(batches)) == 6
    assert isinstance(batches.dataset[1], Unreadable)


def test_a_folder_is_found_by_path_with_its_split(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    folder.rename(root / "val")
    assert len(load_dataset(root, "val")) == 8
    assert len(load_dataset(str(root / "val"), "test")) == 8


def test_an_empty_or_flat_folder_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        ImageFolder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        ImageFolder(tmp_path / "nowhere")


def test_bytes_of_the_right_size_are_only_normalised():
    images = torch.randint(0, 256, (3, 8, 8)).to(torch.uint8)
    assert torch.allclose(transform_for(CFG)(images), images / 127.5 - 1, atol=1e-6)


def test_pictures_of_any_size_and_mode_fit_a_one_channel_model():
    transform = transform_for(CFG | {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)})
    for picture in (Image.new("RGB", (50, 40), (255, 255, 255)), Image.new("L", (28, 28), 255)):
        out = transform(picture)
        assert out.shape == (1, 28, 28)
        assert torch.allclose(out, torch.ones(1, 28, 28))


def test_grey_bytes_fit_a_colour_model():
    out = transform_for(CFG)(torch.full((1, 28, 28), 255, dtype=torch.uint8))
    assert out.shape == (3, 8, 8)
    assert torch.allclose(out, torch.ones(3, 8, 8))


def test_the_transform_of_a_model_is_read_from_its_pretrained_cfg():
    model = nn.Linear(1, 1)
    model.__dict__["pretrained_cfg"] = CFG
    assert transform_for(model)(Image.new("RGB", (20, 20))).shape == (3, 8, 8)
