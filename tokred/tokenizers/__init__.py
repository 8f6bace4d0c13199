"""Image tokenizers: pictures as rows of ids of any length, and back."""

from tokred.tokenizers.base import PAD, Tokenizer, shorten, to_bytes
from tokred.tokenizers.registry import register, tokenizers

__all__ = ["PAD", "Tokenizer", "register", "shorten", "to_bytes", "tokenizers"]
