"""What is built from a recipe: tokenizer, processor, model, and weights taken from another model."""

import pytest
import torch

from tests.multimodal import WORDS, recipe
from tokred.errors import ConfigError, DataError
from tokred.train.vqa_model import build_multimodal, build_processor, build_tokenizer, save_multimodal, take_weights


def test_words_are_lower_case_and_marks_stand_alone():
    tokenizer = build_tokenizer(WORDS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("<image> Question: What zebra?"))
    assert tokens == ["<bos>", "<image>", "question", ":", "what", "<unk>", "?"]
    assert tokenizer.decode(tokenizer.encode("red circle <eos>"), skip_special_tokens=True) == "red circle"


@pytest.mark.parametrize("word", ["Red", "red circle"])
def test_a_word_that_could_never_be_found_is_refused(word):
    with pytest.raises(ConfigError, match="lower case"):
        build_tokenizer((*WORDS, word))


@pytest.mark.parametrize("architecture", ["llava", "llava_next"])
def test_texts_get_as_many_image_tokens_as_the_model_has_features(architecture):
    spec = recipe(architecture).task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).eval()
    for height, width in ((16, 16),) if architecture == "llava" else ((16, 32), (32, 16), (32, 32), (40, 20)):
        inputs = processor(
            images=torch.zeros(3, height, width, dtype=torch.uint8), text="<image>what?", return_tensors="pt"
        )
        assert torch.isfinite(model(**inputs).logits).all()


def test_an_answer_in_the_chat_ends_as_answers_do_in_training():
    processor = build_processor(recipe().task.model)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    asked = processor.apply_chat_template(chat[:1], add_generation_prompt=True)
    tokenizer = processor.tokenizer
    said = tokenizer.encode(processor.apply_chat_template(chat))
    assert said == [*tokenizer.encode(asked), tokenizer.convert_tokens_to_ids("red"), tokenizer.eos_token_id]


def test_an_argument_that_makes_no_model_is_refused():
    spec = recipe().task.model
    wrong = spec.model_copy(update={"text": spec.text | {"hidden_act": "none such"}})
    with pytest.raises(ConfigError, match="cannot be built"):
        build_multimodal(wrong, build_processor(wrong))


def test_larger_patches_see_the_picture_as_the_other_model_saw_a_smaller_one():
    fine, coarse = recipe().task.model, recipe("llava_next").task.model
    coarse = coarse.model_copy(update={"vision": coarse.vision | {"patch_size": 8}})
    source = build_multimodal(fine, build_processor(fine)).eval()
    model = build_multimodal(coarse, build_processor(coarse)).eval()
    assert take_weights(model, source) == []
    small = torch.rand(1, 3, 8, 8)
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    padded = torch.zeros(1, 3, 16, 16)
    padded[:, :, 4:12, 4:12] = small
    ours = (
        model.model.vision_tower.vision_model
        if hasattr(model.model.vision_tower, "vision_model")
        else model.model.vision_tower
    )
    theirs = (
        source.model.vision_tower.vision_model
        if hasattr(source.model.vision_tower, "vision_model")
        else source.model.vision_tower
    )
    middle = theirs.embeddings(padded)[0, 1:].view(4, 4, -1)[1:3, 1:3].flatten(0, 1)
    torch.testing.assert_close(ours.embeddings(large)[0, 1:], middle)


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path):
    spec = recipe().task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor)
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(DataError, match="half precision"):
        save_multimodal(model, processor, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
