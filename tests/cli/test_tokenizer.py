"""``tokred encode`` and ``tokred decode``."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tokenizers.tiny import flextok, karl, pictures
from tokred.cli import main
from tokred.tokenizer_assets import load_tokenizer, save_tokenizer


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them in a folder inside, one of another size and mode."""
    place = tmp_path / "in"
    (place / "more").mkdir(parents=True)
    first, second, _ = (Image.fromarray(image[0].numpy()) for image in pictures(3))
    first.save(place / "a.png")
    second.save(place / "more" / "b.png")
    Image.new("RGBA", (40, 30), (200, 10, 10, 255)).save(place / "c.webp")
    return place


@pytest.fixture
def tokenizer(tmp_path):
    save_tokenizer(flextok(), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def read(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("codes"), file.metadata()


def test_a_folder_becomes_codes_and_pictures_again(capsys, folder, tokenizer, tmp_path):
    codes = tmp_path / "codes.safetensors"
    code, out, err = run(capsys, "encode", folder, codes, "--tokenizer", tokenizer)
    assert (code, err) == (0, "")
    assert "3 pictures, 6.0 tokens each" in out
    rows, header = read(codes)
    assert header["files"] == '["a.png", "c.webp", "more/b.png"]'
    assert torch.equal(rows[[0, 2]], load_tokenizer(tokenizer).encode(pictures(3)[:2]))
    code, out, err = run(capsys, "decode", codes, tmp_path / "out", "--tokens", 2, "--steps", 2, "--guidance", 2)
    assert (code, err) == (0, "")
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == ["a.png", "c.webp.png", "more/b.png"]
    assert np.array(Image.open(tmp_path / "out" / "a.png")).shape == (16, 16)


def test_a_quality_gives_each_picture_its_own_length(capsys, folder, tokenizer, tmp_path):
    codes = tmp_path / "codes.safetensors"
    assert run(capsys, "encode", folder, codes, "--tokenizer", tokenizer, "--quality", 5)[0] == 0
    assert (read(codes)[0] >= 0).sum(1).tolist() == [1, 1, 1]
    assert run(capsys, "decode", codes, tmp_path / "out", "--steps", 1)[0] == 0


def test_a_karl_works_as_well_and_has_no_guidance(capsys, folder, tmp_path):
    save_tokenizer(karl(), tmp_path / "karl")
    codes = tmp_path / "codes.safetensors"
    assert run(capsys, "encode", folder, codes, "--tokenizer", tmp_path / "karl", "--quality", 0.1)[0] == 0
    assert run(capsys, "decode", codes, tmp_path / "out")[0] == 0
    code, _, err = run(capsys, "decode", codes, tmp_path / "out", "--guidance", 2)
    assert code == 2
    assert "draws at once" in err


def test_a_broken_picture_is_named_and_left_out(capsys, folder, tokenizer, tmp_path):
    (folder / "broken.png").write_bytes(b"nothing")
    code, out, err = run(capsys, "encode", folder, tmp_path / "codes.safetensors", "--tokenizer", tokenizer)
    assert code == 0
    assert "broken.png" in err
    assert "3 pictures" in out


def test_what_cannot_be_done_is_said(capsys, folder, tokenizer, tmp_path):
    codes = tmp_path / "codes.safetensors"
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["encode", tmp_path / "nowhere", codes], "is no folder"),
        (["encode", tmp_path / "empty", codes], "no pictures in it"),
        (["encode", folder, codes, "--tokenizer", tokenizer, "--tokens", 0], "writes 1 to 6"),
        (["encode", folder, codes, "--tokenizer", tokenizer, "--tokens", 7], "writes 1 to 6"),
        (["encode", folder, codes, "--tokenizer", "nobody"], "is no tokenizer"),
        (["decode", codes, tmp_path / "out"], "does not exist"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert message in err.replace("\n", " ")
    codes.write_bytes(b"not this")
    assert "not a file that tokred encode wrote" in run(capsys, "decode", codes, tmp_path / "out")[2].replace("\n", " ")
    run(capsys, "encode", folder, codes, "--tokenizer", tokenizer)
    assert "holds 1 to 6" in run(capsys, "decode", codes, tmp_path / "out", "--tokens", 9)[2]


def test_names_that_lead_out_of_the_folder_are_refused(capsys, tokenizer, tmp_path):
    codes = tmp_path / "codes.safetensors"
    header = {"tokenizer": str(tokenizer), "files": '["../evil.png"]'}
    save_file({"codes": torch.zeros(1, 2, dtype=torch.int64)}, codes, metadata=header)
    code, _, err = run(capsys, "decode", codes, tmp_path / "out", "--steps", 1)
    assert code == 2
    assert "outside" in err
    assert not (tmp_path / "evil.png").exists()
