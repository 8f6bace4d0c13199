"""The names that tensors have in published checkpoints, and ours for them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tokred.errors import DataError

_WRAPPER = "_checkpoint_wrapped_module."  # what activation checkpointing may leave in names

_OUTER = {
    "encoder.patch_embed": "encoder.module_dict.enc_patch_emb.patch_proj",
    "encoder.positions.table": "encoder.module_dict.enc_posemb_module.posembs",
    "encoder.registers": "encoder.module_dict.enc_register_module.registers",
    "encoder.blocks": "encoder.module_dict.enc_transformer.blocks",
    "encoder.to_codes": "encoder.module_dict.enc_to_latents.proj",
    "decoder.from_codes": "decoder.module_dict.dec_from_latents.proj",
    "decoder.register_positions.table": "decoder.module_dict.dec_registers_posemb_module.posembs",
    "decoder.mask_token": "decoder.module_dict.dec_nested_dropout.dropout_mask_token",
    "decoder.null": "decoder.module_dict.dec_latent_dropout.nullcond",
    "decoder.patch_embed": "decoder.module_dict.dec_noise_patch_emb.patch_proj",
    "decoder.positions.table": "decoder.module_dict.dec_patches_posemb_module.posembs",
    "decoder.time.hidden": "decoder.module_dict.dec_time_embedder.mlp.0",
    "decoder.time.out": "decoder.module_dict.dec_time_embedder.mlp.2",
    "decoder.blocks": "decoder.module_dict.dec_transformer.blocks",
    "decoder.head.proj": "decoder.module_dict.dec_to_patches.proj",
    "decoder.head.modulation": "decoder.module_dict.dec_to_patches.adaLN_modulation.1",
    "vae.vae": "vae.vae",
}
# the last part of a module's name inside a block; several names are one tensor of ours, one below the other
_INNER = {
    "qkv": ("wq", "wk", "wv"),
    "proj": ("proj",),
    "up": ("fc1", "fc3"),
    "down": ("fc2",),
    "modulation": ("adaLN_modulation.1",),
}


def published_names(ours: str) -> tuple[str, ...]:
    """Return the published names of one of our tensors; the first axis of ours is theirs one after the other.

    >>> published_names("encoder.blocks.3.mlp.up.weight")[1]
    'encoder.module_dict.enc_transformer.blocks.3.mlp.fc3.weight'
    """
    for mine, theirs in _OUTER.items():
        if ours == mine:
            return (theirs,)
        if not ours.startswith(f"{mine}."):
            continue
        rest = ours.removeprefix(f"{mine}.")
        if not mine.endswith("blocks"):
            return (f"{theirs}.{rest}",)
        index, inner = rest.split(".", 1)
        return tuple(f"{theirs}.{index}.{name}" for name in block_names(inner))
    raise KeyError(ours)


def block_names(ours: str) -> tuple[str, ...]:
    """Return the published names of a tensor inside a block.

    >>> block_names("attn.qkv.weight")
    ('attn.wq.weight', 'attn.wk.weight', 'attn.wv.weight')
    """
    *parents, leaf, kind = ours.split(".")
    return tuple(".".join((*parents, name, kind)) for name in _INNER[leaf])


def clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without what wrappers left in their names and without what only training needs."""
    named = {name.replace(_WRAPPER, ""): value for name, value in tensors.items()}
    return {name: value for name, value in named.items() if "repa" not in name and name != "vae.logvar"}


def to_ours(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return our tensors ``wanted`` from published ones.

    Raises:
        DataError: tensors that are missing or that nothing wants; all of them are named.
    """
    names = {ours: published_names(ours) for ours in wanted}
    needed = {name for parts in names.values() for name in parts}
    missing, extra = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed)
    if missing or extra:
        raise DataError(
            f"The tensors do not fit the configuration. Missing: {', '.join(missing) or 'none'}. "
            f"Not expected: {', '.join(extra) or 'none'}."
        )
    return {ours: torch.cat([tensors[name] for name in parts]) for ours, parts in names.items()}


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under their published names."""
    found = {}
    for ours, value in tensors.items():
        parts = published_names(ours)
        found.update(zip(parts, value.chunk(len(parts)), strict=True))
    return found
