"""What visitors bring is limited in size and pixels, and every refusal names the file and the limit."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tokred.demo import uploads
from tokred.errors import DataError


def saved(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 20), **options) -> Path:
    Image.new("RGB", size, (200, 30, 60)).save(folder / name, **options)
    return folder / name


def png_that_claims(width: int, height: int) -> bytes:
    """A tiny file whose header announces a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_usual_formats_become_pictures_in_rgb(tmp_path, name):
    picture = uploads.read_picture(saved(tmp_path, name))
    assert (picture.mode, picture.size) == ("RGB", (40, 20))


def test_a_picture_that_lies_on_its_side_is_set_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    assert uploads.read_picture(saved(tmp_path, "a.jpg", exif=exif)).size == (20, 40)


def test_a_large_picture_is_made_smaller_in_proportion(tmp_path):
    assert uploads.read_picture(saved(tmp_path, size=(4096, 2048))).size == (1024, 512)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"notes\.png cannot be read as a picture .*JPEG, PNG"):
        uploads.read_picture(path)


def test_a_picture_that_is_cut_off_is_refused(tmp_path):
    path = saved(tmp_path, "cut.jpg", (400, 300))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be read"):
        uploads.read_picture(path)


@pytest.mark.parametrize("side", [10_000, 60_000])  # above our limit, and above Pillow's own
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(side, side))
    assert path.stat().st_size < 100
    with pytest.raises(DataError, match=r"bomb\.png has .*pixels.*; up to 40 million are read"):
        uploads.read_picture(path)


def test_a_file_of_too_many_bytes_is_refused_unopened(tmp_path):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(uploads.MAX_BYTES + 1_000_000)
    with pytest.raises(DataError, match=r"long\.png has 11\.0 MB; pictures of up to 10 MB are read"):
        uploads.read_picture(path)


def test_too_many_pictures_at_once_are_refused(tmp_path):
    path = saved(tmp_path)
    assert len(uploads.read_pictures([path] * 3, most=3)) == 3
    with pytest.raises(DataError, match="4 pictures at once; up to 3 are read"):
        uploads.read_pictures([path] * 4, most=3)
