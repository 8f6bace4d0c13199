"""Every encoder of transformers that uses its shared attention is supported, or refused for a reason that is known."""

from __future__ import annotations

from functools import cache

import pytest
import transformers

from tokred.adapters.huggingface_blocks import FAMILIES
from tokred.adapters.huggingface_refused import REFUSED

from .census import MODELS, ModelFile, census

NAMELESS = {"Ovis2VisionConfig"}  # transformers 5.18 gives it no model_type, so nothing can be known by it


@cache
def config_files() -> str:
    """The text of all files of configs."""
    return "".join(path.read_text(encoding="utf-8") for path in MODELS.glob("*/configuration_*.py"))


def is_there(model_type: str) -> bool:
    """Whether a config of the installed transformers has this name."""
    return f'model_type = "{model_type}"' in config_files()


def test_every_encoder_is_supported_or_refused_for_a_reason():
    unknown = [e for e in census() if e.model_type not in FAMILIES.keys() | REFUSED.keys() | NAMELESS]
    assert not unknown, (
        f"transformers {transformers.__version__} has encoders that nobody has looked at: "
        + "; ".join(f"{e.model_type} ({', '.join(e.classes)} in models/{e.folder})" for e in unknown)
        + ". Describe each in FAMILIES (tokred/adapters/huggingface_blocks.py), or say in "
        "tokred/adapters/huggingface_refused.py why it cannot be reduced and what to try."
    )


SOURCE = """
class NewAttention(nn.Module):
    def forward(self, hidden_states):
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation)(self, hidden_states)

KINDS = {"plain": NewAttention}

class NewLayer(nn.Module):
    def __init__(self, config: NewVisionConfig):
        self.attention = KINDS[config.kind](config)

class NewPreTrainedModel(PreTrainedModel):
    config: NewConfig

class NewVisionModel(NewPreTrainedModel):
    config: NewVisionConfig
    _named
    def __init__(self, config: NewVisionConfig):
        self.layers = [NewLayer(config)]
    def forward(self, {argument}, **kwargs):
        pass

class NewTextModel(NewPreTrainedModel):
    config: NewTextConfig
    def __init__(self, config: NewTextConfig):
        self.layers = [NewLayer(config)]
    def forward(self, input_ids):
        pass

class NewModel(NewPreTrainedModel):
    def __init__(self, config: NewConfig):
        self.vision = NewVisionModel(config.vision_config)
        self.text = NewTextModel._from_config(config.text_config)
    def forward(self, input_ids, pixel_values):
        pass
"""


def entries(argument: str, **words: str) -> list[tuple[str, str]]:
    """What is found in the source, with the argument of the encoder and with words replaced."""
    text = SOURCE.replace("{argument}", argument)
    for old, new in words.items():
        text = text.replace(old, new)
    return list(ModelFile(text).entries())


@pytest.mark.parametrize("argument", ["pixel_values", "pixel_values_videos", "hidden_states, grid_thw"])
def test_the_census_finds_a_new_encoder_and_not_what_is_around_it(argument):
    assert entries(argument) == [("NewVisionModel", "NewVisionConfig")]


def test_the_census_knows_pictures_by_the_main_input():
    assert entries("x") == [("NewModel", "NewConfig")], (
        "the part that attends takes no words, so it goes with the whole"
    )
    assert entries("x", _named='main_input_name = "pixel_values"') == [("NewVisionModel", "NewVisionConfig")]


def test_the_census_leaves_out_attention_of_another_make():
    assert entries("pixel_values", ALL_ATTENTION_FUNCTIONS="OTHERS") == []


def test_nothing_is_supported_and_refused():
    assert not FAMILIES.keys() & REFUSED.keys()


def test_every_reason_is_for_an_encoder():
    strange = REFUSED.keys() - {e.model_type for e in census()}
    assert {t for t in strange if is_there(t)} <= {"pp_formulanet"}, "which was an encoder in transformers 5.18"


def test_the_census_finds_all_families():
    missing = FAMILIES.keys() - {e.model_type for e in census()}
    assert not {t for t in missing if is_there(t)}
    assert len(FAMILIES) - len(missing) > 40
