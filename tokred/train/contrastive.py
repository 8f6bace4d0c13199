"""Learn which caption belongs to which picture."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from tokred.clip_assets import build_clip, load_clip, save_clip
from tokred.data import load_captions, load_dataset
from tokred.data.tensors import Normalize
from tokred.data.words import WordTokenizer
from tokred.errors import ConfigError
from tokred.evaluate.retrieval import embed_images, retrieve
from tokred.evaluate.zero_shot import class_features, nearest_class
from tokred.train.config import Contrastive


@dataclass(frozen=True)
class Batch:
    """Pictures with one caption each, and wrong captions beside them.

    Attributes:
        images: [B, 3, H, W], normalised.
        texts: [2 B, L]; the right captions, then a wrong one for each.
        right: [B, 2 B], whether a caption describes a picture.
    """

    images: Tensor
    texts: Tensor
    right: Tensor


class PatchChoice(nn.Module):
    """Stands in for open_clip's PatchDropout while training: CLS and the patches that stand out go on."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Tensor | None = None  # [B, K], places among the patches

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens [B, 1 + K, D]."""
        if not self.training or self.chosen is None:
            return x
        places = nn.functional.pad(self.chosen + 1, (1, 0))  # 0 is CLS
        return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


class ContrastiveTask:
    """The symmetric cross-entropy of CLIP (Radford et al., arXiv 2103.00020) on pictures held in memory.

    All captions of a picture are right wherever they turn up in the batch. Every picture brings a wrong caption along,
    in which one word is another, or two have changed places (Yuksekgonul et al., arXiv 2210.01936): without them colors
    and places tell a batch apart, and shapes are not learned.

    Stage settings:

    - ``patches``: in training, only so many patches go through the blocks: those that differ most from the picture's
      median color. Evaluation sees all of them.
    - ``most_words``: only pictures whose captions have at most so many words.
    """

    def __init__(self, spec: Contrastive, seed: int = 0):
        self.spec = spec
        torch.manual_seed(seed)
        self.model = build_clip(spec.model)
        self.choice = PatchChoice()
        self.model.visual.patch_dropout = self.choice
        self.tokenizer = WordTokenizer(spec.model.words, spec.model.text.context_length)
        self.alternatives = self._alternatives()
        self.data = load_captions(spec.data, "train")
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(seed)).tolist()
        self.held, self.trained = order[: spec.holdout], order[spec.holdout :]
        self.ids = [self.tokenizer(own) for own in self.data.captions]  # each [captions, L]
        self.length = torch.tensor([int((own > 0).sum(1).max()) - 2 for own in self.ids])
        self.normalize = Normalize(spec.model.mean, spec.model.std)
        self.pool, self.patches = torch.tensor(self.trained), 0

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return len(self.trained)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Set what the stage changes; what it does not name goes back to the recipe."""
        known = ("patches", "most_words")
        for name in settings:
            if name not in known:
                raise ConfigError(f"contrastive has no stage setting {name!r}. It has: {', '.join(known)}.")
        vision = self.spec.model.vision
        total = (vision.image_size // vision.patch_size) ** 2
        self.patches = int(settings.get("patches", total))
        if not 1 <= self.patches <= total:
            raise ConfigError(f"patches: {self.patches} must be from 1 to the {total} that a picture has.")
        pool = torch.tensor(self.trained)
        most = settings.get("most_words", int(self.length.max()))
        self.pool = pool[self.length[pool] <= most]
        if len(self.pool) == 0:
            raise ConfigError(f"most_words: no caption has at most {most}; the shortest has {int(self.length.min())}.")

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield an epoch's worth of batches of the stage's pictures, anew from the start where there are fewer."""
        chosen = torch.empty(0, dtype=torch.int64)
        for _ in range(self.examples // batch_size):
            while len(chosen) < batch_size:
                chosen = torch.cat([chosen, self.pool[torch.randperm(len(self.pool), generator=generator)]])
            yield self._batch(chosen[:batch_size].tolist(), generator)
            chosen = chosen[batch_size:]

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of both directions; wrong captions are there to be passed over by pictures alone."""
        self.choice.chosen = self._stand_out(batch.images)
        seen = normalize(self.model.visual(batch.images).float(), dim=-1)
        read = self._read(batch.texts)
        scale = self.model.logit_scale.exp().clamp(max=100)
        with torch.autocast(seen.device.type, enabled=False):
            logits = scale * seen @ read.T  # [B, 2 B]
        right = batch.right.float()
        B = len(right)
        back = right[:, :B].T
        from_images = cross_entropy(logits, right / right.sum(1, keepdim=True))
        from_texts = cross_entropy(logits[:, :B].T, back / back.sum(1, keepdim=True))
        return (from_images + from_texts) / 2

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return recall at 1 among the held-out training pictures, in both directions."""
        if not self.held:
            return {}
        with torch.autocast("cpu", torch.bfloat16):
            found = retrieve(model, self.tokenizer, self.data.part(self.held), self.normalize)
        return {"held_out_image_to_text": found.image_to_text[1], "held_out_text_to_image": found.text_to_image[1]}

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the model in half precision and return the recalls and the zero-shot accuracy of that file."""
        save_clip(model, self.spec.model, folder)
        finished, tokenizer = load_clip(folder)
        found = retrieve(finished, tokenizer, load_captions(self.spec.data, "test"), self.normalize)
        measured = found.columns()
        if self.spec.model.zero_shot is not None:
            labelled: Any = load_dataset(self.spec.model.zero_shot, "test")
            classes = class_features(finished, tokenizer, labelled.classes, self.spec.model.templates)
            named = nearest_class(embed_images(finished, labelled.images, self.normalize), classes)
            measured["zero_shot_top1"] = 100 * (named == labelled.labels).double().mean().item()
        record = {"images": found.images, "texts": found.texts, **measured}
        (folder / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return measured

    def _read(self, texts: Tensor) -> Tensor:
        """Return normalised features [T, D]; the padding that all texts have is left out, which changes nothing."""
        length = int((texts > 0).sum(1).max())
        short = {"positional_embedding": self.model.positional_embedding[:length],
                 "attn_mask": self.model.attn_mask[:length, :length]}  # fmt: skip
        return functional_call(self.model, short, (None, texts[:, :length]))[1].float()

    def _batch(self, chosen: list[int], generator: torch.Generator) -> Batch:
        own = [self.ids[index] for index in chosen]
        picks = torch.rand(len(chosen), generator=generator).tolist()
        texts = torch.stack([ids[int(pick * len(ids))] for ids, pick in zip(own, picks, strict=True)])
        texts = torch.cat([texts, self._spoil(texts, generator)])
        right = torch.zeros(len(own), len(texts), dtype=torch.bool)
        for nth in range(max(len(ids) for ids in own)):
            mine = torch.stack([ids[min(nth, len(ids) - 1)] for ids in own])  # [B, L]
            right |= (mine[:, None] == texts).all(-1)
        return Batch(self.normalize(self.data.images[chosen]), texts, right)

    def _spoil(self, texts: Tensor, generator: torch.Generator) -> Tensor:
        """Return the texts with one word that is another of its kind, in half of them two that changed places."""
        spoiled = texts.clone()
        for row, chances in zip(spoiled, torch.rand(len(texts), 4, generator=generator).tolist(), strict=True):
            words = row.tolist()
            at = [place for place, word in enumerate(words) if word in self.alternatives]
            if not at:
                continue
            place = at[int(chances[0] * len(at))]
            others = self.alternatives[words[place]]
            partners = [other for other in at if words[other] in others]
            if partners and chances[1] < 0.5:
                partner = partners[int(chances[2] * len(partners))]
                row[place], row[partner] = words[partner], words[place]
            else:
                row[place] = others[int(chances[2] * len(others))]
        return spoiled

    def _alternatives(self) -> dict[int, list[int]]:
        """For the id of a word, the ids of others of its kind."""
        known = self.tokenizer.ids
        for word in (word for kind in self.spec.alternatives for word in kind):
            if word not in known:
                raise ConfigError(f"alternatives: {word!r} is none of the model's words.")
        return {known[word]: [known[other] for other in kind if other != word]
                for kind in self.spec.alternatives for word in kind}  # fmt: skip

    def _stand_out(self, images: Tensor) -> Tensor | None:
        """Return the places [B, K] of the patches that differ most from the median color."""
        side = self.spec.model.vision.patch_size
        total = (self.spec.model.vision.image_size // side) ** 2
        if self.patches >= total:
            return None
        far = (images - images.flatten(2).median(-1).values[..., None, None]).abs().sum(1, keepdim=True)
        patches = nn.functional.avg_pool2d(far, side).flatten(1)  # [B, N]
        return patches.topk(self.patches).indices.sort().values
