"""The task of questions about pictures, on a model that learns for two steps."""

import json

import pytest
import torch
from torch import nn

from tests.multimodal import recipe
from tokred.data import Question, VQADataset, VQAExample
from tokred.errors import ConfigError, DataError
from tokred.evaluate.vqa import exact_match, prompt_of
from tokred.multimodal_assets import load_multimodal
from tokred.train import vqa
from tokred.train.loop import train_model
from tokred.train.tasks import build_task
from tokred.train.vqa import VQATask
from tokred.train.vqa_packing import IGNORE

GRIDS = ((1, 2), (2, 1), (2, 2))


def tiny(grids):
    """Twelve pictures of so many tiles of noise, with three questions each."""

    def load(name, split):
        generator = torch.Generator().manual_seed(len(split))
        sizes = [grids[i % len(grids)] for i in range(12)]
        pictures = [(torch.randint(256, (3, 16 * rows, 16 * columns), generator=generator).to(torch.uint8),)
                    for rows, columns in sizes]  # fmt: skip
        asked = (("what shape is in the image?", "circle"), ("is there a red shape?", "yes"), ("what?", "red circle"))
        return VQADataset(pictures, [Question(i, *pair) for i in range(12) for pair in asked])

    return load


@pytest.fixture(params=["llava", "llava_next"])
def task(request, monkeypatch):
    """A task of either architecture."""
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),) if request.param == "llava" else GRIDS))
    spec = recipe(request.param)
    return VQATask(spec.task, seed=0)


def test_packed_questions_get_the_logits_they_get_alone(task):
    task.model.eval()
    pictures = [0, 1, 2]
    asked = [task.data.about(picture) for picture in pictures]
    batch = task._batch([task._image(picture) for picture in pictures], asked)
    with torch.no_grad():
        logits, target, _ = task._answer(task.model, batch, task._see(task.model, batch, whole=True))
        at = 0
        for picture, about in zip(pictures, asked, strict=True):
            for question in about:
                example = VQAExample(task.data.pictures[picture], question.text, question.answer)
                text = prompt_of(task.processor, example)
                inputs = task.processor(images=[list(example.images)], text=[text], return_tensors="pt")
                alone = task.whole(**inputs).logits[0, -1]
                torch.testing.assert_close(logits[at], alone, atol=1e-5, rtol=1e-5)
                at += len(task._ids(question)[1])
    assert at == len(target)


def test_two_steps_change_the_weights_and_the_exported_file_answers(task, tmp_path):
    spec = recipe(task.spec.model.architecture)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    model = train_model(task, spec.loop, tmp_path)
    assert (model.language_model.embed_tokens.weight != before["language_model.embed_tokens.weight"]).any()
    measured = task.export(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "accuracy.json").read_text())
    assert record["test_exact_match"] == measured["test_exact_match"]
    assert record["test_total"] == 36
    assert set(record["test_correct_by_first_words"]) == {"what shape", "is there", "what?"}
    tiled = {"coarse_exact_match", "tiles_hidden_exact_match", "thumbnail_hidden_exact_match"}
    assert record.keys() & tiled == (tiled if task.spec.model.architecture == "llava_next" else set())
    if tiled <= record.keys():
        assert (
            set(record["test_correct_by_tiles"])
            == set(record["coarse_correct_by_tiles"])
            == {"1 x 2", "2 x 1", "2 x 2"}
        )
        assert (
            sum(int(count.split()[0]) for count in record["test_correct_by_tiles"].values()) == record["test_correct"]
        )
    loaded, processor = load_multimodal(tmp_path / "model")
    weight = loaded.model.language_model.embed_tokens.weight
    assert torch.equal(weight, model.language_model.embed_tokens.weight.half().float())
    assert torch.equal(weight, loaded.lm_head.weight)
    found = exact_match(loaded, processor, task.data)
    assert 100 * found.correct / 36 == found.percent


def test_an_interrupted_run_goes_on(task, tmp_path):
    spec = recipe(task.spec.model.architecture)
    train_model(task, spec.loop, tmp_path)
    again = train_model(VQATask(task.spec, seed=0), spec.loop, tmp_path, resume=True)
    assert isinstance(again, nn.Module)


def test_progress_counts_questions_about_held_out_pictures(task):
    measured = task.evaluate(task.model.eval())["held_out_exact_match"]
    assert measured * 12 / 100 == pytest.approx(round(measured * 12 / 100))
    assert not set(task.held) & set(task.trained)
    assert task.examples == 8


def test_batches_hold_every_picture_once_and_so_many_questions(task):
    batches = list(task.batches(4, torch.Generator().manual_seed(0)))
    assert len(batches) == 2
    assert all(int(batch.packed.segment.max()) == 2 for batch in batches)
    assert all((batch.packed.target != IGNORE).any(1).all() for batch in batches)


def test_fewer_tokens_make_training_cheaper_and_leave_evaluation_alone(task):
    lengths = []
    task.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    expected = task.evaluate(task.model.eval())
    fewer = {"patch_pool": 4} if task.spec.model.architecture == "llava" else {"shown": 2, "blank": 1}
    task.begin_stage({"questions": 1} | fewer)
    batch = next(task.batches(4, torch.Generator().manual_seed(0)))
    assert int(batch.packed.segment.max()) == 1
    task.loss(batch).backward()
    assert task.evaluate(task.model.eval()) == expected
    assert lengths[1] < lengths[0] == lengths[2]


@pytest.mark.parametrize("settings", [{"shown": 16, "blank": 16}, {"freeze_tower": True}])
def test_all_tokens_from_a_kept_tower_or_drawn_give_the_loss_of_all_tokens(monkeypatch, settings):
    monkeypatch.setattr(vqa, "load_vqa", tiny(GRIDS))
    task = VQATask(recipe("llava_next").task)
    batch = next(task.batches(4, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        expected = task.loss(batch)
        task.begin_stage(settings)
        for _ in range(2):
            torch.testing.assert_close(task.loss(batch), expected, atol=1e-3, rtol=1e-3)


def test_a_frozen_tower_keeps_its_weights_until_a_stage_trains_it_again(task):
    task.begin_stage({"freeze_tower": True})
    batch = next(task.batches(4, torch.Generator().manual_seed(0)))
    task.loss(batch).backward()
    assert all(p.grad is None for p in task.model.vision_tower.parameters())
    assert task.model.multi_modal_projector.linear_1.weight.grad.any()
    task.begin_stage({})
    task.loss(batch).backward()
    assert any(p.grad is not None for p in task.model.vision_tower.parameters())


def test_mirrored_moved_and_tinted_pictures_keep_their_size(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),)))
    task = VQATask(recipe(flip=True, shift=2, jitter=0.1).task)
    image = task._image(0)
    varied = [task._vary(image, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(each.shape == image.shape and each.dtype == torch.uint8 for each in varied)
    assert not any(torch.equal(each, image) for each in varied)
    plain = VQATask(recipe().task)
    assert torch.equal(plain._vary(image, torch.Generator().manual_seed(0)), image)


def test_training_goes_on_from_the_weights_of_another_model(monkeypatch, tmp_path):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),)))
    first = VQATask(recipe().task, seed=1)
    first.export(first.model, tmp_path / "first")
    monkeypatch.setattr(vqa, "load_vqa", tiny(GRIDS))
    second = VQATask(recipe("llava_next", start_from=str(tmp_path / "first")).task, seed=2)
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(second.model.state_dict()[name], first.model.state_dict()[name])


def test_the_recipe_decides_which_task_is_built(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),)))
    assert isinstance(build_task(recipe()), VQATask)


def test_an_unknown_stage_setting_is_named(task):
    with pytest.raises(ConfigError, match="patchpool"):
        task.begin_stage({"patchpool": 2})
    with pytest.raises(ConfigError, match="must divide"):
        task.begin_stage({"patch_pool": 3})


def test_a_setting_of_the_other_architecture_is_refused(task):
    tiled = task.spec.model.architecture == "llava_next"
    for settings in ({"patch_pool": 2},) if tiled else ({"shown": 2}, {"blank": 1}, {"locate": 1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            task.begin_stage(settings)


def test_a_word_that_the_recipe_lacks_is_refused(monkeypatch):
    def load(name, split):
        return VQADataset([(torch.zeros(3, 16, 16, dtype=torch.uint8),)], [Question(0, "what zebra?", "red")])

    monkeypatch.setattr(vqa, "load_vqa", load)
    with pytest.raises(ConfigError, match="zebra"):
        VQATask(recipe().task)


def test_a_picture_that_is_not_made_of_tiles_is_refused(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 3),)))
    task = VQATask(recipe("llava_next").task)
    with pytest.raises(DataError, match="whole tiles"):
        next(task.batches(4, torch.Generator()))


def test_a_focused_stage_teaches_tower_and_projector_alone(task):
    task.begin_stage({"focus": 3})
    task.loss(next(task.batches(4, torch.Generator().manual_seed(0)))).backward()
    taught = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"vision_tower", "multi_modal_projector", "language_model"}
    layers = task.model.language_model.layers
    assert all(p.grad is None for p in layers.parameters())  # of the language model only the table of words


def test_the_tower_learns_from_the_pictures_that_mosaics_consist_of(monkeypatch):
    def load(name, split):
        source = VQADataset([(torch.full((3, 16, 16), 10 * i, dtype=torch.uint8),) for i in range(2)],
                            [Question(0, "what?", "red"), Question(1, "what?", "circle")])  # fmt: skip
        mosaics = tiny(GRIDS)(name, split)
        return VQADataset(mosaics.pictures, mosaics.questions, source)

    monkeypatch.setattr(vqa, "load_vqa", load)
    task = VQATask(recipe("llava_next").task)
    task.begin_stage({"focus": 3})
    batch = next(task.batches(4, torch.Generator().manual_seed(0)))
    assert batch.pixels.shape == (4, 3, 16, 16)
    red, circle = task.processor.tokenizer.convert_tokens_to_ids(["red", "circle"])
    dark = batch.pixels.mean((1, 2, 3)) < -0.97
    assert torch.equal(batch.named[:, red] > 0, dark)
    assert torch.equal(batch.named[:, circle] > 0, ~dark)
    task.begin_stage({"focus": 3, "singles": 3})
    assert next(task.batches(4, torch.Generator().manual_seed(0))).pixels.shape == (12, 3, 16, 16)


def test_single_pictures_are_what_only_mosaics_consist_of(task):
    for settings in ({"focus": 3, "singles": 2}, {"singles": 0}):
        with pytest.raises(ConfigError, match="singles"):
            task.begin_stage(settings)


def test_patches_of_an_odd_side_cannot_be_searched_for_what_they_show(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),)))
    spec = recipe().task
    odd = spec.model.model_copy(update={"vision": {**spec.model.vision, "image_size": 15, "patch_size": 5}})
    task = VQATask(spec.model_copy(update={"model": odd}))
    with pytest.raises(ConfigError, match="even side"):
        task.begin_stage({"focus": 3})


def test_mosaics_are_neither_mirrored_nor_moved(monkeypatch):
    def load(name, split):
        mosaics = tiny(GRIDS)(name, split)
        return VQADataset(mosaics.pictures, mosaics.questions, mosaics)

    monkeypatch.setattr(vqa, "load_vqa", load)
    drawn = []
    for varied in (False, True):
        task = VQATask(recipe("llava_next", flip=varied, shift=2 * varied).task)
        drawn.append([batch.pixels["pixel_values"] for batch in task.batches(4, torch.Generator().manual_seed(0))])
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))


def test_a_picture_is_named_by_the_words_of_its_answers(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(((1, 1),)))
    task = VQATask(recipe().task)
    named = task._named(task.data.about(0)).nonzero().flatten().tolist()
    assert set(task.processor.tokenizer.convert_ids_to_tokens(named)) == {"circle", "red"}


def test_words_about_single_pictures_are_found_in_questions_in_singular_and_plural(task):
    assert task._words == ["circle", "red"]
    assert task._mentioned("how many circles are there?") == [1, 0]
    assert task._mentioned("where is the red circle?") == [1, 1]
    assert task._mentioned("what is in row 1?") == [0, 0]


def test_naming_places_adds_to_the_loss_and_to_no_evaluation(monkeypatch):
    monkeypatch.setattr(vqa, "load_vqa", tiny(GRIDS))
    task = VQATask(recipe("llava_next").task)
    batch = next(task.batches(4, torch.Generator().manual_seed(0)))
    plain, expected = task.loss(batch), task.evaluate(task.model.eval())
    task.begin_stage({"locate": 1})
    task.model.train()
    assert task.loss(batch) > plain + 0.1
    assert task.evaluate(task.model.eval()) == expected
    with pytest.raises(ConfigError, match="locate"):
        task.begin_stage({"locate": 2})
