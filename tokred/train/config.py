"""What a training recipe says. A recipe is one YAML file; unknown keys are refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokred.assets import ModelConfig
from tokred.clip_assets import ClipConfig, ImageTower, TextTower
from tokred.errors import ConfigError
from tokred.model_folder import check_spec
from tokred.tokenizers.flextok.config import FlexTokConfig, Trunk
from tokred.tokenizers.flextok.times import TimeLaw
from tokred.tokenizers.karl import KARLConfig


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Spec):
    """A stretch of training under fixed settings of the task."""

    epochs: float = Field(gt=0)
    restart: bool = Field(default=False, description="start the learning rate's warm-up and cosine anew")
    learning_rate: float | None = Field(default=None, gt=0, description="peak of this restart, if not the loop's")
    settings: dict[str, Any] = {}


class LoopSpec(_Spec):
    """What the loop needs to know about any task."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    batch_size: int = Field(default=128, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_epochs: float = Field(default=0.5, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_grad: float | None = 1.0
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    bf16: bool = True
    seed: int = 0
    evaluate_every: float = Field(default=1.0, gt=0, description="epochs")
    checkpoint_every: float = Field(default=120, ge=0, description="seconds")


class Classification(_Spec):
    """Train a classifier on labelled pictures."""

    kind: Literal["classification"]
    data: str
    holdout: int = Field(default=5000, ge=0, description="training pictures set aside to watch progress")
    crop_padding: int = 2
    flip: bool = True
    label_smoothing: float = 0.05
    fused_attention: bool = True
    start_from: str | None = Field(default=None, description="model to start from: one that ships, or a folder")
    method: dict[str, Any] | None = Field(default=None, description="reduces tokens in training, too: name and knobs")
    parts_only: bool = Field(default=False, description="train the learnable parts of the method alone")
    model: ModelConfig | None = Field(default=None, description="what is built where there is no start_from")

    @model_validator(mode="after")
    def _from_one_place(self) -> Self:
        if (self.model is None) == (self.start_from is None):
            raise ValueError("give either model, to build one, or start_from, to go on with one")
        if self.parts_only and self.method is None:
            raise ValueError("parts_only: there is no method whose parts could be trained")
        return self


class MultimodalModel(_Spec):
    """A small vision-language model of transformers, with a tokenizer of whole words."""

    architecture: Literal["llava", "llava_next"]
    vision: dict[str, Any] = Field(description="arguments of CLIPVisionConfig")
    text: dict[str, Any] = Field(description="arguments of LlamaConfig")
    words: tuple[str, ...] = Field(min_length=1, description="all words and marks of questions and answers")
    grids: tuple[tuple[int, int], ...] = Field(default=(), description="llava_next: rows and columns of tiles")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class VQA(_Spec):
    """Train a vision-language model on questions about pictures."""

    kind: Literal["vqa"]
    data: str
    holdout: int = Field(default=200, ge=0, description="training pictures set aside to watch progress")
    questions: int = Field(default=6, gt=0, description="questions about each picture in one batch, drawn anew")
    flip: bool = Field(default=False, description="mirror pictures left to right; only where no answer depends on it")
    shift: int = Field(default=0, ge=0, description="pixels that pictures are moved by, at most; edges are repeated")
    jitter: float = Field(default=0.0, ge=0, le=0.5, description="how far the channels' brightness varies")
    balance: bool = Field(default=False, description="let all answers to the same question count the same in the loss")
    start_from: str | None = Field(default=None, description="model to start from, for example one that ships")
    model: MultimodalModel


class PictureSpec(_Spec):
    """Which pictures, and how they are varied."""

    data: str
    holdout: int = Field(default=256, ge=0, description="training pictures set aside to watch progress")
    flip: bool = False
    shift: int = Field(default=0, ge=0, description="pixels that pictures are moved by, at most; dark ones come in")
    workers: int = Field(default=4, ge=0, description="processes that read pictures of a folder")


class FlexTokTraining(PictureSpec):
    """Train a tokenizer of ordered tokens with a rectified flow."""

    kind: Literal["flextok"]
    time_law: TimeLaw = "noisy"
    time_scale: float = Field(default=0.25, description="of the time law 'mode'")
    earliest: float = Field(
        default=0.2, gt=0, le=1, description="image prediction: losses are divided by times above it"
    )
    full_length: bool = Field(default=False, description="never drop tokens: the control without an order")
    compile: bool = False
    autoencoder_from: str | None = Field(
        default=None, description="folder of diffusers' AutoencoderKL with its weights"
    )
    model: FlexTokConfig


class KARLTraining(PictureSpec):
    """Train a tokenizer that says how many tokens a picture needs."""

    kind: Literal["karl"]
    budget_step: int = Field(default=4, gt=0, description="the first pass has a multiple of it as its budget")
    halting_weight: float = Field(default=0.1, ge=0)
    model: KARLConfig


class PriorTraining(PictureSpec):
    """Train a prior over the codes of a tokenizer."""

    kind: Literal["prior"]
    tokenizer: str = Field(description="name or folder of the tokenizer")
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    head_width: int = Field(default=64, gt=0)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)


class Contrastive(_Spec):
    """Train a pair of towers on pictures with captions."""

    kind: Literal["contrastive"]
    data: str
    holdout: int = Field(default=500, ge=0, description="training pictures set aside to watch progress")
    alternatives: tuple[tuple[str, ...], ...] = Field(
        default=(), description="words that can stand for one another: what wrong captions are made of"
    )
    model: ClipConfig


TaskSpec = Classification | VQA | FlexTokTraining | KARLTraining | PriorTraining | Contrastive


class TrainSpec(_Spec):
    """A whole recipe: a name, what is learned, and how."""

    name: str
    task: Annotated[TaskSpec, Field(discriminator="kind")]
    loop: LoopSpec


def with_method(spec: TrainSpec, name: str | None, knobs: Mapping[str, Any]) -> TrainSpec:
    """The recipe with another method inside the model, or with other knobs of its own.

    Raises:
        ConfigError: the recipe trains no image encoder, or there are knobs but no method.
    """
    if not isinstance(spec.task, Classification):
        raise ConfigError(f"A method goes into an image encoder; {spec.name} trains a {spec.task.kind}.")
    own = spec.task.method or {}
    entry = {**(own if name in (None, own.get("name")) else {"name": name}), **knobs}
    if "name" not in entry:
        raise ConfigError(f"Knobs ({', '.join(knobs)}) of which method? Add --method.")
    task = spec.task.model_copy(update={"method": entry})
    return spec.model_copy(update={"task": task, "name": f"{spec.name}-{entry['name']}" if name else spec.name})


_SPECS = (
    TrainSpec, LoopSpec, Stage, Classification, VQA, ModelConfig, MultimodalModel, FlexTokTraining, FlexTokConfig,
    Trunk, KARLTraining, KARLConfig, PriorTraining, Contrastive, ClipConfig, ImageTower, TextTower,
)  # fmt: skip


def load_spec(path: str | Path) -> TrainSpec:
    """Read and check a recipe.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a wrong value; the message names it.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    return check_spec(raw, path, TrainSpec, *_SPECS)
