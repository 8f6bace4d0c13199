"""The embedded model for mosaics: it answers, it reads its tiles, and its card says what was measured."""

import json
from itertools import islice

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import tokred
from tokred.data import VQADataset, mosaic
from tokred.evaluate.hidden_tiles import HidingProcessor
from tokred.evaluate.vqa import exact_match
from tokred.folders import shipped_folder
from tokred.multimodal_assets import list_multimodal_models, load_multimodal

NAME = "llava-next-shapes"
FOLDER = shipped_folder("models") / NAME


@pytest.fixture(scope="module")
def some():
    """Forty test questions about ten mosaics."""
    data = mosaic("test")
    return VQADataset(data.pictures, list(islice(data.questions, 40)))


def test_it_is_found_by_name_and_answers_most_questions(some):
    assert NAME in list_multimodal_models()
    model, processor = load_multimodal(NAME)
    assert model.config.model_type == "llava_next"
    assert exact_match(model, processor, some).percent >= 80


def test_it_reads_its_tiles(some):
    model, processor = load_multimodal(NAME)
    vision = model.config.vision_config
    hiding = HidingProcessor(processor, (vision.image_size // vision.patch_size) ** 2)
    assert exact_match(model, hiding, some).percent <= exact_match(model, processor, some).percent - 20


def test_hired_leaves_tiles_without_any_token_where_others_leave_none(some):
    model, processor = load_multimodal(NAME)
    empty = {}
    for method in (tokred.HiRED(keep=0.5, newlines="unpadded"), tokred.GlobalCom2(keep=0.5)):
        counts = []
        with tokred.patch(model, method) as handle, torch.no_grad():
            for example in islice(some, 0, 40, 8):
                turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
                text = processor.apply_chat_template(turn, add_generation_prompt=True)
                model(**processor(images=[to_pil_image(example.image)], text=[text], return_tensors="pt"))
                choice = handle.language.last.images[0][0].choice
                partition = choice.layout.partition
                kept = partition[choice.map.kept[0]]
                counts.append([int((kept == tile).sum()) for tile in range(1, int(partition.max()) + 1)])
        empty[type(method).__name__] = sum(count == 0 for row in counts for count in row)
    assert empty["HiRED"] > 0
    assert empty["GlobalCom2"] == 0


def test_the_card_says_what_was_measured_of_the_file():
    record = json.loads((FOLDER / "accuracy.json").read_text())
    card = (FOLDER / "README.md").read_text()
    assert f"**{record['test_exact_match']:.2f} %** ({record['test_correct']:,})" in card
    assert record["test_exact_match"] == 100 * record["test_correct"] / record["test_total"]
    assert record["test_total"] == len(mosaic("test"))
    for name in ("coarse", "tiles_hidden", "thumbnail_hidden"):
        assert f"| {record[f'{name}_exact_match']:.2f} %" in card
    kinds = record["test_correct_by_first_words"]
    assert sum(int(count.split(" of ")[0]) for count in kinds.values()) == record["test_correct"]
    for start, count in kinds.items():
        right, total = map(int, count.split(" of "))
        assert f"| {start} ... | {100 * right / total:.1f} % | {right} of {total} |" in card
    fine, coarse = record["test_correct_by_tiles"], record["coarse_correct_by_tiles"]
    for tiles, count in fine.items():
        right, total = map(int, count.split(" of "))
        less = int(coarse[tiles].split(" of ")[0])
        assert f"| {tiles} | {100 * right / total:.1f} % | {100 * less / total:.1f} % | {total} |" in card
    assert f"falls by\n{record['test_exact_match'] - record['coarse_exact_match']:.1f} points" in card
    size = (FOLDER / "model.safetensors").stat().st_size
    assert size <= 12_000_000
    assert f"{size:,} bytes" in card
