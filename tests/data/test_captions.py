"""Pictures with captions, the words they are made of, and the scenes that are drawn."""

import json

import pytest
import torch
from PIL import Image

from tokred.data import CaptionedImages, Unreadable, caption_names, load_captions, load_dataset
from tokred.data.scenes import CLASSES, COLORS, MOST, SHAPES, WORDS, draw_scenes, draw_things
from tokred.data.words import WordTokenizer
from tokred.errors import DataError

IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


def test_no_pictures_are_no_data_set():
    with pytest.raises(DataError, match="no pictures"):
        CaptionedImages(IMAGES[:0], [])


def test_unequal_numbers_are_refused_with_both_numbers():
    with pytest.raises(DataError, match="2 pictures, but captions for 3"):
        CaptionedImages(IMAGES, [["a"], ["b"], ["c"]])


@pytest.mark.parametrize("own", [[], ["a", " "], "a text"])
def test_every_picture_needs_a_list_of_captions(own):
    with pytest.raises(DataError, match="Picture 1"):
        CaptionedImages(IMAGES, [["a"], own])


def test_a_part_keeps_pictures_and_captions_together():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    part = CaptionedImages(images, [["a"], ["b"], ["c", "d"]]).part([2, 0])
    assert part.images.flatten().tolist() == [2, 0]
    assert part.captions == (("c", "d"), ("a",))


def test_unknown_captions_are_refused_by_name():
    with pytest.raises(DataError, match=r"'scene' is no known set.*scenes"):
        load_captions("scene")
    with pytest.raises(DataError, match="train, test"):
        load_captions("scenes", "validation")
    assert caption_names() == ("scenes",)


def test_the_end_of_a_text_has_the_highest_id_and_padding_is_0():
    tokenizer = WordTokenizer(("a", "red", "ring"), 6)
    ids = tokenizer(["A red ring!", "ring"])
    assert ids.tolist() == [[1, 2, 3, 4, 5, 0], [1, 4, 5, 0, 0, 0]]
    assert ids.argmax(1).tolist() == [4, 2]
    assert tokenizer.vocab_size == 6
    assert tokenizer.decode(ids[0]) == "a red ring"
    assert tokenizer("ring", context_length=4).tolist() == [[1, 4, 5, 0]]


def test_an_unknown_word_is_named_with_the_nearest():
    tokenizer = WordTokenizer(("a", "red", "ring"), 6)
    with pytest.raises(DataError, match=r"'a rings': .* no word 'rings'\. Did you mean 'ring'"):
        tokenizer(["a ring", "a rings"])
    with pytest.raises(DataError, match="It knows: a, red, ring"):
        tokenizer("elephant")


def test_a_text_that_is_too_long_is_refused_and_not_cut():
    tokenizer = WordTokenizer(("a", "red", "ring"), 5)
    assert tokenizer("a red ring").shape == (1, 5)
    with pytest.raises(DataError, match="has 4 words; with start and end there is room for 3"):
        tokenizer("a red red ring")


def test_a_seed_draws_the_same_scenes():
    scenes, again, other = draw_scenes(40, seed=3), draw_scenes(40, seed=3), draw_scenes(40, seed=4)
    assert torch.equal(scenes.images, again.images)
    assert scenes.captions == again.captions
    assert scenes.captions != other.captions
    assert scenes.images.shape == (40, 3, 48, 48)


def test_captions_tell_everything_about_every_thing():
    scenes, things = draw_scenes(60, seed=5), draw_things(60, seed=5)
    tokenizer = WordTokenizer(WORDS, 32)
    for own, captions in zip(things.tolist(), scenes.captions, strict=True):
        known = [thing for thing in own if thing[0] >= 0]
        assert len({thing[4] for thing in known}) == len(known), "one place each"
        for text in captions:
            tokenizer(text)
            words = text.split()
            assert sorted(word for word in words if word in SHAPES) == sorted(SHAPES[thing[0]] for thing in known)
            assert sorted(word for word in words if word in COLORS) == sorted(
                tuple(COLORS)[thing[1]] for thing in known
            )
        first, second = (sorted(text.split()) for text in captions)
        assert first == second, "the same words in another order"
    assert {int((own >= 0).sum()) for own in things[..., 0]} == set(range(1, MOST + 1))


def test_a_thing_is_where_its_caption_says():
    scenes, things = draw_scenes(60, seed=6, most=1), draw_things(60, seed=6, most=1)
    edges = scenes.images.float().diff(dim=-1).abs().sum(1)  # [N, 48, 47]
    cells = torch.nn.functional.pad(edges, (0, 1)).view(-1, 3, 16, 3, 16).sum((2, 4)).flatten(1)
    assert torch.equal(cells.argmax(1), things[:, 0, 4])


def test_single_shapes_are_named_by_color_and_shape():
    data = load_dataset("single-shapes")
    assert len(data) == 1000
    assert data.classes == CLASSES
    assert len(set(CLASSES)) == 40
    image, label = data[0]
    assert image.shape == (3, 48, 48)
    assert label in range(40)


def write(folder, *lines):
    Image.new("RGB", (6, 9), (200, 0, 0)).save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "captions.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return folder / "captions.jsonl"


def test_a_file_gives_every_picture_all_its_captions_and_reads_it_when_it_is_asked_for(tmp_path):
    path = write(
        tmp_path,
        {"image": "red.png", "captions": ["a red picture", "red"]},
        "",
        {"image": "broken.png", "caption": "nothing"},
        {"image": "red.png", "caption": "all red"},
    )
    data = load_captions(path, transform=lambda picture: picture.size)
    assert data.captions == (("a red picture", "red", "all red"), ("nothing",))
    assert data[0] == ((6, 9), 0)
    assert isinstance(data[1], Unreadable)
    assert len(data.part([1])) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"captions.jsonl, line 2: not JSON"),
        ({"captions": ["a"]}, r"line 2: an object with image and captions is needed"),
        ({"image": "red.png", "captions": []}, r"line 2: 'captions' must be texts that are not empty \(found \[\]\)"),
        ({"image": "red.png"}, r"line 2: 'captions' must be texts that are not empty \(found None\)"),
        ({"image": "blue.png", "caption": "a"}, r"line 2: the image .*blue.png does not exist"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    with pytest.raises(DataError, match=said):
        load_captions(write(tmp_path, {"image": "red.png", "caption": "red"}, line))


def test_a_file_without_captions_is_refused(tmp_path):
    with pytest.raises(DataError, match="no captions in it"):
        load_captions(write(tmp_path, ""))
