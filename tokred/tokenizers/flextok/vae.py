"""Between pixels and latents: nothing, or a variational autoencoder of diffusers."""

from typing import Any

import torch
from torch import Tensor, nn

from tokred.errors import ConfigError, DataError
from tokred.tokenizers.flextok.config import AutoencoderSpec


class DiffusersVAE(nn.Module):
    """diffusers' ``AutoencoderKL`` with the scaling of its latents; runs without gradients, in float32.

    Raises:
        DataError: diffusers is not installed.
        ConfigError: arguments that its class does not take.
    """

    def __init__(self, spec: AutoencoderSpec):
        super().__init__()
        try:
            from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise DataError(
                "This tokenizer works on latents of diffusers' AutoencoderKL. Try: pip install 'tokred[vae]'."
            ) from error
        self.spec = spec
        try:
            self.vae: Any = AutoencoderKL(**spec.args).requires_grad_(False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"autoencoder.args: AutoencoderKL cannot be built from them: {error}") from error

    def load(self, folder: str) -> None:
        """Take the weights of a folder that ``AutoencoderKL.save_pretrained`` wrote.

        Raises:
            DataError: no such folder, or weights that do not fit.
        """
        try:
            other = type(self.vae).from_pretrained(folder, local_files_only=True)
            self.vae.load_state_dict(other.state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{folder}: the autoencoder cannot be loaded ({error}).") from error

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of the posterior, or a draw where the configuration says so, times the scaling factor."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images).latent_dist
            latents = posterior.sample() if self.spec.sample_posterior else posterior.mode()
            return latents * self.spec.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode((latents / self.spec.scaling_factor).to(next(self.parameters()).dtype)).sample
