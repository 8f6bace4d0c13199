"""The numbers of a FlexTok, as ``config.json`` holds them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tokred.tokenizers.flextok.dropout import KeepLaw, Ordering
from tokred.tokenizers.flextok.masks import MaskMode
from tokred.tokenizers.flextok.positions import Kind, Scaling


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Trunk(_Part):
    """A stack of transformer blocks."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    head_width: int = Field(default=64, gt=0)
    hidden: int | None = Field(default=None, gt=0, description="of the MLPs; floor(8 / 3 * width) where not given")
    mask: MaskMode = "full"
    positions: Kind = "sincos"
    scaling: Scaling = "absolute"


class AutoencoderSpec(_Part):
    """What stands between pixels and latents. Its weights are part of the model's."""

    kind: Literal["diffusers"] = "diffusers"
    scaling_factor: float = Field(gt=0)
    sample_posterior: bool = Field(default=False, description="draw the latents; ids then differ from call to call")
    downsampling: int = 8
    args: dict[str, object] = Field(default={}, description="arguments of diffusers' AutoencoderKL")


class FlexTokConfig(_Part):
    """A whole FlexTok.

    >>> FlexTokConfig(side=32, patch=4, registers=16, levels=(8, 5, 5, 5), encoder=Trunk(width=128, depth=2),
    ...               decoder=Trunk(width=128, depth=3)).grid
    8
    """

    architecture: Literal["flextok"] = "flextok"
    channels: int = Field(default=3, gt=0, description="of the picture, or of the latents")
    side: int = Field(gt=0, description="rows and columns of the picture, or of the latents")
    any_size: bool = Field(default=False, description="whether smaller pictures, square or not, may be given")
    patch: int = Field(default=2, gt=0)
    registers: int = Field(gt=0)
    levels: tuple[int, ...] = Field(min_length=1)
    encoder: Trunk
    decoder: Trunk
    ordering: Ordering = "nested"
    register_positions: Kind = "learned_sum"
    groups: Literal[1, 2] = 2
    modulated_head: bool = True
    null: Literal["learned", "zero"] | None = "learned"
    null_probability: float = Field(default=0.1, ge=0, lt=1)
    keep_law: KeepLaw = "pow2"
    max_time: float = Field(default=1.0, gt=0)
    time_features: int = Field(default=256, gt=0)
    prediction: Literal["velocity", "image"] = "velocity"
    autoencoder: AutoencoderSpec | None = None
    data: str | None = None

    @property
    def grid(self) -> int:
        """Patches in a row."""
        return self.side // self.patch
