"""Only the modules of ATP learn, they learn what they are told, and the file gives what was measured."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

import tokred
from tests.adapters import zoo_multimodal as zoo
from tests.learn.tiny_llava import build_llava
from tokred.data import Question, VQADataset
from tokred.errors import ConfigError, DataError
from tokred.learn import ATPSpec, train_atp
from tokred.learn.answers import IGNORE, Answered, answer, answer_loss, put_behind
from tokred.learn.atp import atp_losses, deciding
from tokred.learn.atp_training import train_modules
from tokred.learn.questions import ask, split_pictures
from tokred.train.loop import Step

UNIT = {"scaling": "unit", "layers": (1, 2, 3)}
SPEC = ATPSpec("tiny", "noise", "4", UNIT, steps=12, batch_size=4, holdout=6, threads=1)


@pytest.fixture
def parts() -> tuple[Any, Any]:
    return build_llava()


def batch_of(processor: Any, questions: VQADataset, count: int = 4) -> Any:
    return answer(processor, [questions[i] for i in range(count)])


def train(parts: tuple[Any, Any], questions: VQADataset, folder: Path, spec: ATPSpec = SPEC, **more: Any) -> Any:
    return train_modules(spec, *parts, questions, folder, **more)


def test_gradients_reach_every_module_and_nothing_else(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    model.requires_grad_(False)
    with tokred.patch(model, tokred.ATP(**UNIT)) as handle:
        optimizer = torch.optim.SGD(handle.modules.train().parameters(), lr=0.1)
        for _ in range(2):  # heads that are zero let nothing through in the first step
            optimizer.zero_grad()
            atp_losses(handle, batch_of(processor, questions), target=4).total.backward()
            optimizer.step()
        for name, parameter in handle.modules.named_parameters():
            if "spatial" not in name:  # a spatial threshold takes part where its score is the higher one
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_language_loss_alone_reaches_the_modules(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    with tokred.patch(model.requires_grad_(False), tokred.ATP(**UNIT)) as handle:
        handle.modules.train()
        atp_losses(handle, batch_of(processor, questions), target=4).language.backward()
        for layer in handle.modules.values():
            assert layer.redundant.bias.grad.abs() > 0


def test_the_loss_is_that_of_the_paper(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    batch = batch_of(processor, questions)
    with torch.no_grad(), tokred.patch(model, tokred.ATP(**UNIT)) as handle:
        handle.modules.train()
        found = atp_losses(handle, batch, target=4)
        passage = handle.language.last
        visual = (batch.inputs["input_ids"] == model.config.image_token_id).float()
        left = visual
        kept: list[Tensor] = []
        for stage in passage.stages:
            left = left * stage.soft
            kept.append(left.sum(1).mean())
    depth = sum(n / 16 * layer for n, layer in zip(kept, (1, 2, 3), strict=True))
    off = abs(sum(kept) / 3 - 4)
    torch.testing.assert_close(found.total, found.language + 0.05 * depth + 0.2 * off)
    torch.testing.assert_close(found.kept, torch.stack(kept))


def test_training_decides_by_the_prompt_as_generation_does(parts: tuple[Any, Any], questions: VQADataset):
    """The right answer, however long, has no part in the decision."""
    model, processor = parts
    examples = [questions[i] for i in range(4)]
    assert len({len(example.answer.split()) for example in examples}) > 1
    method = tokred.ATP(**UNIT)
    with torch.no_grad(), tokred.patch(model, method) as handle:
        handle.modules.eval()
        batch = answer(processor, examples)
        model(**batch.inputs, logits_to_keep=batch.answers.shape[1] + 1, past_key_values=DynamicCache(), use_cache=True)
        taught = handle.trace.tokens_per_layer
        ask(handle, processor, VQADataset(questions.pictures, questions.questions[:4]))
        assert handle.trace.tokens_per_layer == taught


def test_the_language_loss_is_that_of_each_answer_alone(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    examples = [questions[i] for i in range(4)]
    total, words = 0.0, 0
    with torch.no_grad(), tokred.patch(model, tokred.ATP(**UNIT)) as handle:
        handle.modules.train()
        for example in examples:
            alone = answer(processor, [example])
            total += float(atp_losses(handle, alone, 4).language) * alone.answers.numel()
            words += alone.answers.numel()
        together = float(atp_losses(handle, answer(processor, examples), 4).language)
    assert together == pytest.approx(total / words, rel=1e-4)


def test_only_the_modules_change_and_the_model_is_given_back_as_it_was(
    parts: tuple[Any, Any], questions: VQADataset, tmp_path: Path
):
    model, _ = parts
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned = train(parts, questions, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    fresh = tokred.ATP(**UNIT).modules(4, 16).state_dict()
    found = load_file(learned.weights)
    assert found.keys() == fresh.keys()
    assert all(not torch.equal(found[name], fresh[name]) for name in fresh if name.endswith("redundant.bias"))


def test_a_resumed_training_gives_the_modules_of_an_uninterrupted_one(questions: VQADataset, tmp_path: Path):
    def stop(step: Step) -> None:
        if step.number == 7:
            raise KeyboardInterrupt

    whole = train(build_llava(), questions, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(build_llava(), questions, tmp_path / "cut", report=stop)
    assert not (tmp_path / "cut" / "atp.safetensors").exists()
    steps: list[int] = []
    again = train(
        build_llava(), questions, tmp_path / "cut", resume=True, report=lambda step: steps.append(step.number)
    )
    assert steps[0] == 8
    expected = load_file(whole.weights)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(again.weights).items())
    with pytest.raises(ConfigError, match="another recipe"):
        train(build_llava(), questions, tmp_path / "cut", replace(SPEC, target="5"), resume=True)


def test_a_lower_target_keeps_fewer_tokens(questions: VQADataset, tmp_path: Path):
    spec = replace(SPEC, steps=40, learning_rate=0.05, lambda_atp=0.0)
    kept = [
        train(build_llava(), questions, tmp_path / target, replace(spec, target=target)).card["kept"]
        for target in ("2", "50%", "14")
    ]
    assert kept == sorted(kept)
    assert kept[-1] > kept[0] + 4


def test_the_file_gives_the_hard_choice_that_the_card_reports(
    parts: tuple[Any, Any], questions: VQADataset, tmp_path: Path
):
    model, processor = parts
    learned = train(parts, questions, tmp_path)
    card = json.loads((tmp_path / "atp.json").read_text())
    assert card == json.loads(json.dumps(learned.card, default=str))
    knobs = {k: tuple(v) if isinstance(v, list) else v for k, v in card["knobs"].items()}
    method = tokred.create_method(card["method"], **{**knobs, "weights": tmp_path / knobs["weights"]})
    held = split_pictures(questions, SPEC.holdout, SPEC.seed)[1]
    with tokred.patch(model, method) as handle:
        reached = ask(handle, processor, held)
    assert reached.per_layer == card["visual_tokens_per_layer"]
    assert reached.per_layer[0] == card["visual_tokens"] == 16
    assert reached.answers.percent == card["exact_match"]
    assert card["kept"] == pytest.approx(sum(reached.per_layer[1:]) / 3)
    assert card["questions"] == 6


def test_questions_set_aside_are_about_other_pictures(questions: VQADataset):
    trained, held = split_pictures(questions, 5, seed=1)
    assert len(held) == 5
    assert not {q.picture for q in trained.questions} & {q.picture for q in held.questions}


def test_a_result_far_from_its_target_is_said(
    parts: tuple[Any, Any], questions: VQADataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        card = train(parts, questions, tmp_path, replace(SPEC, steps=1, target="1")).card
    assert card["kept"] > 2
    assert "hard decisions do not" in caplog.text


def test_deciding_with_other_modules_leaves_the_own_ones_as_they_were(parts: tuple[Any, Any]):
    with tokred.patch(parts[0], tokred.ATP(**UNIT)) as handle:
        own, other = handle.modules.train(), tokred.ATP(**UNIT).modules(4, 16)
        other["1"].redundant.bias.data.fill_(9)
        with deciding(own, other):
            assert not own.training
            assert own["1"].redundant.bias == 9
        assert own.training
        assert own["1"].redundant.bias == 0


def test_a_training_by_names_loads_trains_and_writes(llava_folder: str, question_file: str, tmp_path: Path):
    spec = replace(SPEC, model=llava_folder, data=question_file, target="25%", steps=2)
    said: list[str] = []
    card = train_atp(spec, tmp_path, say=said.append).card
    assert card["target"] == 4
    assert card["model"] == llava_folder
    assert len(said) == 3


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"target": "17"}, ConfigError, "the prompts have 16 visual tokens on average"),
        ({"knobs": {"layers": (1, 4)}}, ConfigError, "ascending layers from 1 on and 3"),
        ({"holdout": 24}, DataError, "too few to set 24 of them aside"),
        ({"batch_size": 64}, ConfigError, "A batch of 64 is more than"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(
    parts: tuple[Any, Any],
    questions: VQADataset,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[Exception],
    named: str,
):
    with pytest.raises(error, match=named):
        train(parts, questions, tmp_path, replace(SPEC, **change))
    assert not hasattr(parts[0].model, "_tokred_handle"), "the patch is taken out"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"target": "many"}, "write visual tokens, such as 64, or a share"),
        ({"target": "0"}, "more than 0"),
        ({"knobs": {"temprature": 3}}, "did you mean 'temperature'"),
        ({"knobs": {"scaling": "half"}}, "'none' or 'unit'"),
        ({"steps": 0}, "steps 0: it must be above 0"),
        ({"lambda_target": -1.0}, "must not be below 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(change: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        replace(SPEC, **change)


def test_questions_without_image_are_refused(parts: tuple[Any, Any], questions: VQADataset, tmp_path: Path):
    blind = VQADataset([()] * 12, [Question(q.picture, q.text, q.answer) for q in questions.questions])
    with pytest.raises(DataError, match="has no image"):
        train(parts, blind, tmp_path)


def test_a_batch_of_words_alone_is_refused(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    batch = batch_of(processor, questions)
    with tokred.patch(model, tokred.ATP(**UNIT)) as handle:
        handle.modules.train()
        atp_losses(handle, batch, 4)
        del batch.inputs["pixel_values"]
        batch.inputs["input_ids"][batch.inputs["input_ids"] == model.config.image_token_id] = 7
        with pytest.raises(DataError, match="no image in the prompts"):
            atp_losses(handle, batch, 4)


def test_modules_that_drop_are_refused(parts: tuple[Any, Any], questions: VQADataset):
    model, processor = parts
    with tokred.patch(model, tokred.ATP(**UNIT)) as handle, pytest.raises(ConfigError, match=r"handle\.modules\.train"):
        atp_losses(handle, batch_of(processor, questions), 4)


def test_weights_of_another_width_are_refused(parts: tuple[Any, Any], questions: VQADataset, tmp_path: Path):
    other = tokred.ATP(**UNIT).modules(4, 24)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    spec = replace(SPEC, knobs={**UNIT, "weights": str(tmp_path / "other.safetensors")})
    with pytest.raises(ConfigError, match=r"of width 24; this model needs .* of width 16"):
        train(parts, questions, tmp_path / "out", spec)


FAMILIES = [
    "Llava",
    "LlavaNext",
    "LlavaOnevision",
    "Qwen2VL",
    "Qwen3VL",
    "InternVL",
    "SmolVLM",
    "PaliGemma",
    "Mistral3",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_learn_it(name: str):
    model = zoo.build(name).requires_grad_(False)
    inputs = zoo.prompts(name, model, [1, 2])
    answers = torch.tensor([[5, 6, zoo.END], [7, zoo.END, IGNORE]])
    batch = Answered(put_behind(inputs, answers, zoo.END), answers)
    with torch.no_grad():
        logits = model(**batch.inputs).logits[:, -4:-1].float()
    expected = cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(answer_loss(model, batch), expected, atol=1e-4, rtol=1e-4)
    with tokred.patch(model, tokred.ATP(scaling="unit")) as handle:
        handle.modules.train()
        losses = atp_losses(handle, batch, target=4)
        losses.total.backward()
        visual = (inputs["input_ids"] == zoo.IMAGE).sum(1).float().mean()
        assert (losses.kept > 0).all()
        assert (losses.kept < visual).all()
        assert all(module.redundant.bias.grad.abs() > 0 for module in handle.modules.values())
