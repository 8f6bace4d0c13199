"""Every encoder of transformers that uses its shared attention is supported, or refused for a reason that is known."""

from __future__ import annotations

from functools import cache

import transformers

from tokred.adapters.huggingface_blocks import FAMILIES
from tokred.adapters.huggingface_refused import REFUSED

from .census import MODELS, census

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


def test_nothing_is_supported_and_refused():
    assert not FAMILIES.keys() & REFUSED.keys()


def test_every_reason_is_for_an_encoder():
    strange = REFUSED.keys() - {e.model_type for e in census()}
    assert {t for t in strange if is_there(t)} <= {"pp_formulanet"}, "which was an encoder in transformers 5.18"


def test_the_census_finds_all_families():
    missing = FAMILIES.keys() - {e.model_type for e in census()}
    assert not {t for t in missing if is_there(t)}
    assert len(FAMILIES) - len(missing) > 40
