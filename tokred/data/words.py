"""A tokenizer of whole words, called as the tokenizers of open_clip are."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tokred.errors import DataError

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


class WordTokenizer:
    """Texts to ids [B, context_length]: start, one id a word, end, padded with 0.

    The end has the highest id, because open_clip pools the token with the highest one. Case and marks do not matter.

    Args:
        words: the vocabulary; ids count from 2 in this order.
        context_length: tokens of a text, start and end included.

    >>> WordTokenizer(["a", "red", "circle"], context_length=6)("A red circle.")
    tensor([[1, 2, 3, 4, 5, 0]])
    """

    pad, start = 0, 1

    def __init__(self, words: Sequence[str], context_length: int):
        self.words, self.context_length = tuple(words), context_length
        self.ids = {word: index for index, word in enumerate(self.words, 2)}
        self.end = len(self.words) + 2

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.end + 1

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return the ids, int64 [B, context_length].

        Raises:
            DataError: a word that is not in the vocabulary, or more words than there is room for; text and word are
                named.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        length = self.context_length if context_length is None else context_length
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in enumerate(texts):
            own = [self.start, *self._encode(text), self.end]
            if len(own) > length:
                raise DataError(
                    f"{text!r} has {len(own) - 2} words; with start and end there is room for {length - 2}. "
                    "Shorten the caption."
                )
            ids[row, : len(own)] = torch.tensor(own)
        return ids

    def decode(self, ids: Tensor) -> str:
        """Return the words of one text [N] again, in lower case and without marks."""
        return " ".join(self.words[i - 2] for i in ids.tolist() if self.start < i < self.end)

    def _encode(self, text: str) -> list[int]:
        found = []
        for word in _WORD.findall(text.lower()):
            if word not in self.ids:
                near = difflib.get_close_matches(word, self.words, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"It knows: {', '.join(self.words)}."
                raise DataError(f"{text!r}: the model's vocabulary has no word {word!r}. {hint}")
            found.append(self.ids[word])
        return found
