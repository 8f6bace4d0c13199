"""A random LLaVA of four layers and 16 visual tokens, and 24 questions about 12 pictures of noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.multimodal import recipe
from tokred.data import VQADataset, read_vqa
from tokred.train.vqa_model import build_multimodal, build_processor, save_multimodal

ASKED = (("what shape is in the image?", "circle"), ("is there a red shape?", "red circle"))


def build_llava(width: int = 16) -> tuple[Any, Any]:
    """Model and processor; the weights are large enough that it attends to something."""
    spec = recipe().task.model  # type: ignore[union-attr]
    text = {**spec.text, "num_hidden_layers": 4, "hidden_size": width, "intermediate_size": width}
    spec = spec.model_copy(update={"text": text})
    torch.manual_seed(0)
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model, processor


def write_questions(folder: Path, pictures: int = 12) -> Path:
    noise = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(pictures):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        lines += [{"image": f"{index}.png", "question": text, "answer": answer} for text, answer in ASKED]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    model, processor = build_llava()
    save_multimodal(model, processor, folder)
    return str(folder)


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_questions(tmp_path_factory.mktemp("questions")))


@pytest.fixture(scope="session")
def questions(question_file: str) -> VQADataset:
    return read_vqa(question_file)
