"""What the shipped ``vit-fmnist`` sees in pictures: features to measure by where no network can be downloaded."""

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from tokred.assets import load_model

_BORDER = 4  # pixels that a smaller picture may have got around it
_GREY = (0.299, 0.587, 0.114)


class Features(nn.Module):
    """Features of pictures [N, C, H, W] in [-1, 1] by a small ViT trained on grey clothes of 28 x 28 pixels.

    Coloured pictures are made grey; larger ones are made small, but for a border of up to 4 pixels, which is cut off.

    Attributes:
        num_features: how many a picture has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = load_model("vit-fmnist").requires_grad_(False)
        self.num_features = int(self.model.num_features)  # type: ignore[arg-type]
        config = self.model.__dict__["pretrained_cfg"]
        self.side, self.mean, self.std = config["input_size"][-1], config["mean"][0], config["std"][0]

    def forward(self, images: Tensor) -> Tensor:
        """Return what the model puts before its head, [N, D]."""
        return self.model.forward_head(self.patches(images), pre_logits=True)  # type: ignore[operator]

    def patches(self, images: Tensor) -> Tensor:
        """Return the tokens behind the last block, [N, T, D]."""
        return self.model.forward_features(self._inside(images))  # type: ignore[operator]

    def _inside(self, images: Tensor) -> Tensor:
        images = (images.float().clamp(-1, 1) + 1) / 2
        if images.shape[1] == 3:
            images = (images * images.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
        height, width = images.shape[-2:]
        top, left = (height - self.side) // 2, (width - self.side) // 2
        if 0 <= height - self.side <= _BORDER and 0 <= width - self.side <= _BORDER:
            images = images[..., top : top + self.side, left : left + self.side]
        else:
            images = interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return (images - self.mean) / self.std


def feature_distance(features: Tensor, others: Tensor) -> Tensor:
    """Return one less the cosine of tokens [N, T, D] at the same place, meaned over places: [N], 0 for equal pictures.

    As LPIPS (Zhang et al., arXiv 1801.03924) compares features, without weights learned from people's judgement.
    """
    return 1 - cosine_similarity(features.float(), others.float(), dim=-1).mean(-1)
