"""A prior over codes: draws rows of ids of any length for a class, one id after the other."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from tokred.errors import ConfigError, DataError
from tokred.tokenizers.flextok.guidance import Scale, scale_at


class PriorConfig(BaseModel):
    """A whole prior, and the tokenizer that its ids are of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["prior"] = "prior"
    tokenizer: str
    vocabulary: int = Field(gt=1)
    tokens: int = Field(gt=0)
    classes: tuple[str, ...] = Field(min_length=1)
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    head_width: int = Field(default=64, gt=0)
    class_dropout: float = Field(default=0.1, ge=0, lt=1)


class Prior(nn.Module):
    """A causal transformer behind a class token, with learned positions, RMS norms and gated MLPs.

    Every row is learned at its full length; since a token never sees a later one, any shorter row is drawn as well.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        if config.width % config.head_width:
            raise ConfigError(f"A width of {config.width} cannot be cut into heads of {config.head_width}.")
        self.config = config
        self.class_table = nn.Embedding(len(config.classes) + 1, config.width)  # the last one is no class
        self.id_table = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
        self.blocks = nn.ModuleList(_Block(config.width, config.head_width) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for name, part in self.named_parameters():
            if part.ndim > 1:
                nn.init.trunc_normal_(part, std=0.02 if "head" not in name else config.width**-0.5)

    @property
    def no_class(self) -> int:
        """What stands for no class at all."""
        return len(self.config.classes)

    def forward(self, classes: Tensor, codes: Tensor) -> Tensor:
        """Return the logits [B, K, V] of every id of codes [B, K], each given the class and the ids before it."""
        x = self.class_table(classes)[:, None]
        if codes.shape[1] > 1:
            x = torch.cat([x, self.id_table(codes[:, :-1])], 1)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(
        self,
        classes: Tensor,
        tokens: int | None = None,
        *,
        guidance: Scale = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return codes int64 [B, k] for classes [B]; the number of classes stands for none.

        Args:
            classes: int64 [B].
            tokens: how many ids; by default all.
            guidance: strength of classifier-free guidance, or a function of the part of the row that is drawn.
            temperature: of the draws; 0 takes the most likely ids.
            top_k: draw among so many ids only.
            generator: of the draws.

        Raises:
            DataError: classes or a length that the model does not have.
            ConfigError: guidance, and the model was never trained without a class.
        """
        config = self.config
        tokens = config.tokens if tokens is None else tokens
        if not 1 <= tokens <= config.tokens:
            raise DataError(f"tokens: {tokens} a picture; the prior draws 1 to {config.tokens}.")
        if (
            classes.ndim != 1
            or classes.is_floating_point()
            or int(classes.min()) < 0
            or int(classes.max()) > self.no_class
        ):
            raise DataError(f"Classes are int64 [B] from 0 to {self.no_class - 1}, or {self.no_class} for none.")
        guided = callable(guidance) or guidance != 1
        if guided and config.class_dropout == 0:
            raise ConfigError("Guidance needs a prior that was trained without classes, too; this one was not.")
        B = len(classes)
        if guided:
            classes = torch.cat([classes, torch.full_like(classes, self.no_class)])
        blocks = [block for block in self.blocks if isinstance(block, _Block)]
        caches = [block.cache(len(classes), tokens, self.positions) for block in blocks]
        codes = torch.empty(B, tokens, dtype=torch.int64, device=classes.device)
        x = self.class_table(classes)
        for place in range(tokens):
            x = (x + self.positions[place])[:, None]
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, cache, place)
            logits = self.head(self.norm(x[:, 0])).float()
            if guided:
                own, none = logits.chunk(2)
                logits = none + scale_at(guidance, place / tokens) * (own - none)
            ids = _draw(logits, temperature, top_k, generator)
            codes[:, place] = ids
            x = self.id_table(ids.repeat(2) if guided else ids)
        return codes


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        lowest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class _Block(nn.Module):
    """Causal attention and a gated MLP; whole rows at once, or one token at a time with a cache."""

    def __init__(self, dim: int, head_width: int):
        super().__init__()
        self.heads = dim // head_width
        hidden = 8 * dim // 3
        self.attn_norm, self.mlp_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, K, D]."""
        q, k, v = self._heads(x)
        return self._finish(x, scaled_dot_product_attention(q, k, v, is_causal=True))

    def cache(self, batch: int, tokens: int, like: Tensor) -> Tensor:
        """Return room for keys and values, [2, B, H, K, d]."""
        width = self.qkv.in_features // self.heads
        return torch.zeros(2, batch, self.heads, tokens, width, dtype=like.dtype, device=like.device)

    def step(self, x: Tensor, cache: Tensor, place: int) -> Tensor:
        """Return one token [B, 1, D]; its key and value go into the cache."""
        q, k, v = self._heads(x)
        cache[0, :, :, place : place + 1], cache[1, :, :, place : place + 1] = k, v
        keys, values = cache[:, :, :, : place + 1]
        return self._finish(x, scaled_dot_product_attention(q, keys, values))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = self.qkv(self.attn_norm(x)).chunk(3, -1)
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        gate, value = self.up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(silu(gate) * value)
