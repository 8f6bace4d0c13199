"""Learn to answer questions about pictures."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad

from tokred.data import Question, VQAExample, as_thumbnails, load_vqa
from tokred.errors import ConfigError, DataError
from tokred.evaluate.hidden_tiles import HidingProcessor
from tokred.evaluate.vqa import exact_match, prompt_of
from tokred.multimodal_assets import load_multimodal
from tokred.train.config import VQA
from tokred.train.vqa_cache import TileCache
from tokred.train.vqa_focus import find_shown, focused_features
from tokred.train.vqa_model import IMAGE, build_multimodal, build_processor, save_multimodal, take_weights
from tokred.train.vqa_packing import IGNORE, Grid, Packed, attention_bias, pack, pool, thin
from tokred.train.vqa_places import OUTSIDE, asked_places, naming_loss, number_places, placing_loss


@dataclass(frozen=True)
class Batch:
    """Pictures as the processor makes them, their blocks of patch tokens, and the questions about each.

    ``weight`` says how much each question counts, 0 where a picture has fewer than others; ``asked``, which row and
    column it names, and ``mentioned``, which of the words that can be answers about single pictures.
    """

    pixels: dict[str, Tensor]
    grids: list[list[Grid]]
    packed: Packed
    weight: Tensor  # [B, K]
    asked: Tensor  # [B, K, 2]
    mentioned: Tensor  # [B, K, C]


@dataclass(frozen=True)
class SinglePictures:
    """Pictures of one tile, and a one for every word in an answer about each, "yes" and "no" aside."""

    pixels: Tensor  # [B, 3, H, H]
    named: Tensor  # [B, V]


class VQATask:
    """Cross-entropy on answers, many questions about a picture in one sequence.

    A question sees the picture and itself, at the positions it would have alone: the loss is that of one sequence for
    each question, and the picture goes through the model once. ``model`` is without a head; the head is the table of
    the word embeddings.

    Stage settings:

    - ``patch_pool``: in training, every square of so many by so many patch tokens becomes its mean before the language
      model, at the place of its first one; for LLaVA. Evaluation sees all tokens.
    - ``shown`` and ``blank``: in training, the language model gets of each tile at most so many tokens that show
      something and so many others, drawn anew for every batch, at their own places; for LLaVA-NeXT. Evaluation sees all
      tokens, and so does training where neither is given.
    - ``locate``: behind so many blocks of the language model, visual tokens must also tell the numbers of the row and
      the column of tiles they are in, and tokens that answer what the question names: row, column, and words such as
      "red" that are answers to questions about single pictures. By the table of word embeddings; for LLaVA-NeXT.
    - ``focus``: the tower and the projector alone, on single pictures: of mosaics, what they consist of. The tower
      sees only so many by so many patches around what differs from the background; the mean of their tokens must name
      the words of the answers by the table of word embeddings. It teaches the tower shapes at a tenth of the cost.
    - ``singles``: with ``focus``, so many single pictures for every mosaic of a batch; 1 if left out.
    - ``freeze_tower``: everything but the tower is trained.
    - ``questions``: about each picture in a batch, where not as in the rest of the recipe.
    """

    def __init__(self, spec: VQA, seed: int = 0):
        self.spec = spec
        torch.manual_seed(seed)
        self.processor = build_processor(spec.model)
        self.whole = build_multimodal(spec.model, self.processor)
        if spec.start_from is not None:
            take_weights(self.whole, load_multimodal(spec.start_from)[0])
        self.whole.set_attn_implementation("eager")  # in bfloat16 on a CPU it trains faster than the fused one
        self.model: nn.Module = self.whole.model
        self.data = load_vqa(spec.data, "train")
        order = torch.randperm(len(self.data.pictures), generator=torch.Generator().manual_seed(seed)).tolist()
        order = [picture for picture in order if self.data.about(picture)]
        self.held, self.trained = order[: spec.holdout], order[spec.holdout :]
        self._prefix, self._known = _split_prompt(self.processor), {}
        self._check_words()
        single = (self.data.source or self.data).questions
        self._words = sorted({word for question in single for word in question.answer.split()} - {"yes", "no"})
        self._texts = Counter(question.text for question in self.data.questions)
        self._pairs = Counter((question.text, question.answer) for question in self.data.questions)
        self._answers = Counter(text for text, _ in self._pairs)
        self.begin_stage({})

    @property
    def examples(self) -> int:
        """Training pictures in one epoch."""
        return len(self.trained)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Set what the stage changes; what it does not name goes back to the recipe."""
        known = ("patch_pool", "shown", "blank", "locate", "focus", "singles", "freeze_tower", "questions")
        for name in settings:
            if name not in known:
                raise ConfigError(f"vqa has no stage setting {name!r}. It has: {', '.join(known)}.")
        side = self.spec.model.vision["image_size"] // self.spec.model.vision["patch_size"]
        tiled = self.spec.model.architecture == "llava_next"
        self.factor = int(settings.get("patch_pool", 1))
        if self.factor < 1 or side % self.factor or (self.factor > 1 and tiled):
            raise ConfigError(
                f"patch_pool: {self.factor} must divide the {side} x {side} patches, and the model be a llava."
            )
        self.drawn = (int(settings.get("shown", 0)), int(settings.get("blank", 0)))
        if min(self.drawn) < 0 or (any(self.drawn) and not tiled):
            raise ConfigError(f"shown, blank: {self.drawn} must not be negative, and the model be a llava_next.")
        self.focus = int(settings.get("focus", 0))
        if not 0 <= self.focus <= side:
            raise ConfigError(f"focus: {self.focus} must be at most {side} patches.")
        if self.spec.model.vision["patch_size"] % 2 and (self.focus or any(self.drawn)):
            raise ConfigError("focus, shown, blank: the patches must have an even side.")
        self.singles = int(settings.get("singles", 1))
        if self.singles < 1 or (self.singles > 1 and (not self.focus or self.data.source is None)):
            raise ConfigError(f"singles: {self.singles} must be at least 1, with focus, on data that is composed.")
        self.locate = int(settings.get("locate", 0))
        depth = self.spec.model.text["num_hidden_layers"]
        if not 0 <= self.locate < depth or (self.locate and not tiled):
            raise ConfigError(f"locate: {self.locate} must be less than {depth} blocks, and the model a llava_next.")
        self.questions = int(settings.get("questions", self.spec.questions))
        frozen = bool(settings.get("freeze_tower", False))
        self.model.get_submodule("vision_tower").requires_grad_(not frozen)
        self.cache = TileCache() if frozen and tiled else None

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch | SinglePictures]:
        """Yield one epoch of pictures, varied as the recipe says, with questions drawn anew.

        Eight batches at a time are sorted by size, so that pictures of one batch need little padding.
        """
        order = torch.randperm(len(self.trained), generator=generator).tolist()
        order = [self.trained[i] for i in order[: len(order) // batch_size * batch_size]]
        for start in range(0, len(order), 8 * batch_size):
            pairs = [(picture, self._image(picture)) for picture in order[start : start + 8 * batch_size]]
            pairs.sort(key=lambda pair: pair[1].numel())
            starts = torch.randperm(len(pairs) // batch_size, generator=generator) * batch_size
            for first in starts.tolist():
                chosen = pairs[first : first + batch_size]
                own = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
                yield self._single_pictures(chosen, own) if self.focus else self._questions_about(chosen, own)

    def loss(self, batch: Batch | SinglePictures) -> Tensor:
        """Return the mean cross-entropy of all words of all answers, end included, as the recipe weighs questions."""
        if isinstance(batch, SinglePictures):
            patch = self.spec.model.vision["patch_size"]
            token = focused_features(self.model, batch.pixels, patch, self.focus)[:, 0]
            table: Tensor = self.model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
            return naming_loss(token, batch.named, table)
        pictures = self._see(self.model, batch, whole=False)
        logits, target, placing = self._answer(self.model, batch, pictures)
        rows, places = (batch.packed.target != IGNORE).nonzero(as_tuple=True)
        weight = batch.weight[rows, batch.packed.segment[rows, places] - 1]
        answering = (weight * cross_entropy(logits.float(), target, reduction="none")).sum() / weight.sum()
        return answering + 0.5 * placing

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return how many questions about the held-out pictures are answered word for word.

        Every word is predicted behind the right ones; all of them are right exactly if greedy generation is right.
        """
        right = total = 0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(self.held), 16):
                pictures = self.held[start : start + 16]
                batch = self._batch([self._image(i) for i in pictures], [self.data.about(i) for i in pictures])
                logits, target, _ = self._answer(model, batch, self._see(model, batch, whole=True))
                wrong = logits.argmax(-1) != target
                rows, places = (batch.packed.target != IGNORE).nonzero(as_tuple=True)
                number = rows * 1000 + batch.packed.segment[rows, places]  # one for every question
                total += len(number.unique())
                right += len(number.unique()) - len(number[wrong].unique())
        return {"held_out_exact_match": 100 * right / max(1, total)}

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the model in half precision and return the exact match of that file on the test set.

        Where pictures are cut into tiles, also that on pictures which hold no more detail than the thumbnail does, and
        what is left where the language model sees no tiles, or no thumbnail.
        """
        self.whole.model.load_state_dict(model.state_dict())
        self.whole.set_attn_implementation("sdpa")
        save_multimodal(self.whole, self.processor, folder)
        model, processor = load_multimodal(folder)
        test = load_vqa(self.spec.data, "test")
        found = exact_match(model, processor, test)
        record = {"test_exact_match": found.percent, "test_correct": found.correct, "test_total": found.total}
        starts = [" ".join(question.text.split()[:2]) for question in test.questions]
        counts = {"test_correct_by_first_words": _count_right(starts, found.right)}
        if self.spec.model.architecture == "llava_next":
            vision = self.spec.model.vision
            coarse = exact_match(model, processor, as_thumbnails(test, vision["image_size"]))
            record["coarse_exact_match"] = coarse.percent
            sizes = [test.pictures[question.picture][0].shape[1:] for question in test.questions]
            tiles = [" x ".join(str(side // vision["image_size"]) for side in size) for size in sizes]
            counts["test_correct_by_tiles"] = _count_right(tiles, found.right)
            counts["coarse_correct_by_tiles"] = _count_right(tiles, coarse.right)
            for hide in ("tiles", "thumbnail"):
                hiding = HidingProcessor(processor, (vision["image_size"] // vision["patch_size"]) ** 2, hide)
                record[f"{hide}_hidden_exact_match"] = exact_match(model, hiding, test).percent
        written = json.dumps(record | counts, indent=2)
        (folder / "accuracy.json").write_text(written + "\n", encoding="utf-8")
        return {name: value for name, value in record.items() if name.endswith("exact_match")}

    def _check_words(self) -> None:
        tokenizer = self.processor.tokenizer
        for question in self.data.questions:
            prompt, answer = self._ids(question)
            if tokenizer.unk_token_id in (*prompt, *answer):
                raise ConfigError(
                    f"The recipe's words do not cover {question.text!r} -> {question.answer!r} of {self.spec.data}."
                )

    def _ids(self, question: Question) -> tuple[list[int], list[int]]:
        """Return the tokens behind the image, and the answer with its end."""
        key = (question.text, question.answer)
        if key not in self._known:
            tokenizer = self.processor.tokenizer
            text = prompt_of(self.processor, VQAExample((torch.empty(0),), *key))
            prompt = tokenizer.encode(text)[len(self._prefix) :]
            self._known[key] = (
                prompt,
                [*tokenizer.encode(question.answer, add_special_tokens=False), tokenizer.eos_token_id],
            )
        return self._known[key]

    def _image(self, picture: int) -> Tensor:
        images = self.data.pictures[picture]
        if len(images) != 1:
            raise DataError(
                f"{self.spec.data}: training takes one image a question; picture {picture} has {len(images)}."
            )
        return images[0]

    def _draw(self, picture: int, generator: torch.Generator) -> list[Question]:
        about = self.data.about(picture)
        return [about[i] for i in torch.randperm(len(about), generator=generator)[: self.questions].tolist()]

    def _vary(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Mirror, move and tint an image [3, H, W]. Everything is drawn, used or not."""
        coin, *tint = torch.rand(4, generator=generator).tolist()
        shift = self.spec.shift
        top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
        if self.spec.flip and coin < 0.5:
            image = image.flip(-1)
        if shift:
            H, W = image.shape[1:]
            image = pad(image[None].float(), (shift,) * 4, mode="replicate")[0, :, top : top + H, left : left + W]
        if self.spec.jitter:
            scale = 1 + self.spec.jitter * (2 * torch.tensor(tint) - 1)
            image = image.float() * scale[:, None, None]
        return image.round().clamp(0, 255).to(torch.uint8)

    def _questions_about(self, chosen: list[tuple[int, Tensor]], generator: torch.Generator) -> Batch:
        if self.data.source is None:  # moved or mirrored, a mosaic would be another one
            chosen = [(picture, self._vary(image, generator)) for picture, image in chosen]
        return self._batch([image for _, image in chosen], [self._draw(picture, generator) for picture, _ in chosen])

    def _single_pictures(self, chosen: list[tuple[int, Tensor]], generator: torch.Generator) -> SinglePictures:
        """Return the chosen pictures; where they are composed, as many of those that they are composed of."""
        data, source = self.data, self.data.source
        if source is not None:
            data = source
            count = self.singles * len(chosen)
            drawn = torch.randint(len(source), (count,), generator=generator).tolist()
            numbers = [source.questions[i].picture for i in drawn]
            chosen = [(picture, source.pictures[picture][0]) for picture in numbers]
        images = [self._vary(image, generator) for _, image in chosen]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        named = torch.stack([self._named(data.about(picture)) for picture, _ in chosen])
        return SinglePictures(pixels if pixels.ndim == 4 else pixels[:, 0], named)  # LLaVA-NeXT: the thumbnails

    def _named(self, questions: Sequence[Question]) -> Tensor:
        """Return a one for every word in the answers, "yes" and "no" aside [V]."""
        named = torch.zeros(len(self.processor.tokenizer))
        for question in questions:
            if question.answer not in ("yes", "no"):
                named[self._ids(question)[1][:-1]] = 1
        return named

    def _batch(self, images: list[Tensor], asked: Sequence[Sequence[Question]]) -> Batch:
        pixels = dict(self.processor.image_processor(images=images, return_tensors="pt"))
        packed = pack([[self._ids(question) for question in about] for about in asked])
        weight = torch.zeros(len(images), max(map(len, asked)))
        places = torch.full((*weight.shape, 2), OUTSIDE)
        mentioned = torch.zeros(*weight.shape, len(self._words))
        for row, about in enumerate(asked):
            weight[row, : len(about)] = torch.tensor([self._weight(question) for question in about])
            places[row, : len(about)] = torch.tensor([asked_places(question.text) for question in about])
            mentioned[row, : len(about)] = torch.tensor([self._mentioned(question.text) for question in about])
        return Batch(pixels, [self._grids(image) for image in images], packed, weight, places, mentioned)

    def _mentioned(self, text: str) -> list[float]:
        """Return a one for each of the words about single pictures in a text, in the singular or the plural."""
        words = text.rstrip("?").split()
        return [float(word in words or f"{word}s" in words) for word in self._words]

    def _weight(self, question: Question) -> float:
        """Return 1, or what makes all answers to the same text count the same."""
        if not self.spec.balance:
            return 1.0
        text, pair = question.text, (question.text, question.answer)
        return self._texts[text] / (self._answers[text] * self._pairs[pair])

    def _grids(self, image: Tensor) -> list[Grid]:
        vision = self.spec.model.vision
        side = vision["image_size"] // vision["patch_size"]
        if self.spec.model.architecture == "llava":
            return [Grid(side, side)]
        rows, columns = (length // vision["image_size"] for length in image.shape[1:])
        if (rows, columns) not in self.spec.model.grids or image.shape[1:] != (
            rows * vision["image_size"],
            columns * vision["image_size"],
        ):
            raise DataError(
                f"A picture of {tuple(image.shape[1:])} pixels is not made of whole tiles of one of the grids."
            )
        return [Grid(side, side), Grid(rows * side, columns * side, newline=True)]

    def _see(self, model: Any, batch: Batch, whole: bool) -> list[tuple[Tensor, Tensor]]:
        """Return the tokens of each picture [N, D], all or as the stage says, with their places among all [N]."""
        if self.cache is not None and not whole:
            tiles = [own[: _tiles(grids)] for own, grids in zip(batch.pixels["pixel_values"], batch.grids, strict=True)]
            features = self.cache.features(model, tiles, batch.pixels["image_sizes"])
        else:
            features = model.get_image_features(**batch.pixels, return_dict=True).pooler_output
        vision = self.spec.model.vision
        pictures = []
        for own, grids, pixels in zip(features, batch.grids, batch.pixels["pixel_values"], strict=True):
            if not whole and self.factor > 1:
                pictures.append(pool(own, vision["image_size"] // vision["patch_size"], self.factor))
            elif not whole and any(self.drawn):
                places = thin(find_shown(pixels[: _tiles(grids)], vision["patch_size"]), grids, *self.drawn)
                pictures.append((own[places], places))
            else:
                pictures.append((own, torch.arange(len(own))))
        return pictures

    def _answer(self, model: Any, batch: Batch, pictures: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits [A, V] where words of answers are due, the words [A], and the loss of naming places."""
        embed = model.get_input_embeddings()
        front = len(self._prefix) - 1  # tokens before the image
        packed, B = batch.packed, len(pictures)
        longest = max(len(tokens) for tokens, _ in pictures)
        start = embed(torch.tensor(self._prefix[:-1])).expand(B, -1, -1)
        image = torch.stack([pad(tokens, (0, 0, 0, longest - len(tokens))) for tokens, _ in pictures])
        places = torch.stack([pad(place, (0, longest - len(place))) for _, place in pictures]) + front
        real = torch.stack([torch.arange(front + longest) < front + len(tokens) for tokens, _ in pictures])
        full = torch.tensor([sum(grid.tokens for grid in grids) for grids in batch.grids]) + front
        embedded = torch.cat([start.to(image.dtype), image, embed(packed.ids).to(image.dtype)], 1)
        positions = torch.cat([torch.arange(front).expand(B, -1), places, full[:, None] + packed.offset], 1)
        found = model.language_model(
            inputs_embeds=embedded,
            attention_mask=attention_bias(real, packed.segment).to(image.dtype),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=self.locate > 0,
        )
        hidden = found.last_hidden_state[:, front + longest :]
        due = packed.target != IGNORE
        placing = hidden.new_zeros(())
        if self.locate and model.training:
            middle = [row[front : front + len(own)] for row, (_, own) in
                      zip(found.hidden_states[self.locate], pictures, strict=True)]  # fmt: skip
            numbers = [number_places(own, grids) for (_, own), grids in zip(pictures, batch.grids, strict=True)]
            answering = found.hidden_states[self.locate][:, front + longest :][due]
            rows, at = due.nonzero(as_tuple=True)
            question = (rows, packed.segment[rows, at] - 1)
            told = model.language_model.norm(torch.cat([*middle, answering]))
            digits = self._embeddings(list("123456789"[: max(map(max, self.spec.model.grids))]))
            placing = placing_loss(told, torch.cat([*numbers, batch.asked[question]]), digits)
            mentioned = batch.mentioned[question]
            placing = placing + naming_loss(told[-len(answering) :], mentioned, self._embeddings(self._words))
        return linear(hidden[due], embed.weight), packed.target[due], placing

    def _embeddings(self, words: list[str]) -> Tensor:
        """Return the rows of the table of word embeddings [K, D]."""
        table: Tensor = self.model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
        return table[self.processor.tokenizer.convert_tokens_to_ids(words)]


def _tiles(grids: Sequence[Grid]) -> int:
    """Return how many tiles there are, the thumbnail counted."""
    thumbnail, tiles = grids
    return 1 + tiles.height * tiles.width // thumbnail.tokens


def _count_right(kinds: Sequence[str], right: Sequence[bool]) -> dict[str, str]:
    """Say for each kind of questions how many of them were answered rightly: "3 of 4"."""
    count = Counter(kind for kind, own in zip(kinds, right, strict=True) if own)
    return {kind: f"{count[kind]} of {every}" for kind, every in sorted(Counter(kinds).items())}


def _split_prompt(processor: Any) -> list[int]:
    """Return the tokens of every prompt up to the image, which is the last of them."""
    tokens = processor.tokenizer.encode(prompt_of(processor, VQAExample((torch.empty(0),), "", "")))
    return tokens[: tokens.index(processor.tokenizer.convert_tokens_to_ids(IMAGE)) + 1]
