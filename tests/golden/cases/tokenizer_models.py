"""Whole tokenizers at a tiny size, from published names to drawn latents and gradients."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tokred.tokenizers.flextok.flow import mix, velocity_target
from tokred.tokenizers.flextok.layout import clean, to_ours, to_published
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.flextok.published import config_from

from ..case import Case, checks
from ..compare import close, near, same
from .tokenizer_parts import margin

DRAWN = {"relative": 1e-3, "absolute": 1e-4}
_DECODE = re.compile(r"(none|cfg|apg)([\d.]*)_k(\d+)_n(\d+)")


def model_of(case: Case) -> FlexTok:
    """The tokenizer of a case, through the loader of published files."""
    tensors = clean(case.below("param/"))
    model = FlexTok(config_from(case.hyper["model"], tensors))
    model.load_state_dict(to_ours(tensors, model.state_dict()))
    return model.eval()


def is_whole(case: Case) -> bool:
    """A model with its inputs and ids."""
    return "model" in case.hyper and case.has("latents", "tokens", "noise")


@checks("", is_whole)
@torch.no_grad()
def check_encoder(case: Case) -> None:
    """Tokens before, inside and behind the encoder; codes and ids; an early stop gives the same ones."""
    model, latents = model_of(case), case["latents"]
    before, after = [], []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda _module, inputs: before.append(inputs))
        block.register_forward_hook(lambda _module, _inputs, output: after.append(output))
    pre_quant = model.encoder(latents)
    near(model.encoder.embed(latents), case["enc/patches"].flatten(1, 2), "enc/patches")
    near(before[0][0].flatten(0, 1)[None], case["enc/packed"], "enc/packed")
    if before[0][1] is not None:
        same(torch.block_diag(*[before[0][1].long()] * len(latents)), case["enc/mask"], "enc/mask")
    for index, tokens in enumerate(after):
        if case.has(f"enc/enc_block{index}"):
            near(tokens.flatten(0, 1)[None], case[f"enc/enc_block{index}"], f"enc/enc_block{index}", 5e-5)
    near(pre_quant, case["enc/pre_quant"], "enc/pre_quant", 5e-5)
    near(margin(model.fsq.bound(pre_quant)), case["token_margin"], "token_margin", 5e-5)
    codes, ids = model.fsq(pre_quant)
    near(codes, case["codes"], "codes")
    same(ids, case["tokens"], "tokens")
    for tokens in (1, ids.shape[1] // 2):
        if model.config.encoder.mask != "full" and model.config.ordering == "nested":
            same(model.encode(latents, tokens=tokens), case["tokens"][:, :tokens], f"first {tokens} tokens")


@checks("", is_whole)
@torch.no_grad()
def check_step(case: Case) -> None:
    """One look of the decoder, for every number of tokens, and the features of the tapped block."""
    model, noise, t = model_of(case), case["noise"], case["step/t"]
    near(model.decoder.time(t), case["step/temb"], "step/temb")
    (tap,) = case.hyper["model"]["decoder"]["module_dict"]["dec_transformer"].get("intermediate_layers") or [0]
    for keep in sorted(int(name) for name in case.below("step/registers_k")):
        registers = model.decoder.condition(case["codes"], torch.full((len(noise),), keep))
        near(registers, case[f"step/registers_k{keep}"], f"step/registers_k{keep}")
        near(model.decoder.velocity(noise, t, registers), case[f"step/velocity_k{keep}"], f"velocity_k{keep}")
        wanted = case.get(f"step/repa_patches_k{keep}")
        if wanted is not None:
            near(model.decoder(noise, t, registers, tap=tap), wanted.flatten(1, 2), f"repa_patches_k{keep}", 5e-5)
    if case.has("step/velocity_uncond"):
        velocity = model.decoder.velocity(noise, t, model.decoder.unconditional(len(noise)))
        near(velocity, case["step/velocity_uncond"], "step/velocity_uncond")


@checks("", is_whole)
def check_drawing(case: Case) -> None:
    """Latents drawn from noise for every number of tokens, of steps and every guidance, and a ragged batch."""
    model, ids = model_of(case), case["tokens"]
    for name, wanted in case.below("decode/").items():
        kind, scale, keep, steps = _DECODE.fullmatch(name).groups()
        found = _draw(model, ids[:, : int(keep)], case, int(steps), float(scale or 1), kind == "apg")
        close(found, wanted, name, **DRAWN)
    if case.has("ragged/keep_k", "ragged/out"):
        rows = [row[:keep] for row, keep in zip(ids, case["ragged/keep_k"].tolist(), strict=True)]
        found = _draw(model, rows, case, case.hyper["steps"][-1], 7.5, True)
        close(found, case["ragged/out"], "ragged/out", **DRAWN)


def _draw(model: FlexTok, codes: Tensor | list[Tensor], case: Case, steps: int, scale: float, apg: bool) -> Tensor:
    return model.decode(codes, steps=steps, guidance=scale, projected=apg, noise=case["noise"])


@checks("", lambda case: is_whole(case) and case.has("train/loss", "train/t"))
def check_training(case: Case) -> None:
    """The loss of one step and its gradients, from the velocity through the rounding to the encoder."""
    model, latents, noise, t = model_of(case), case["latents"], case["noise"], case["train/t"]
    codes, _ = model.fsq(model.encoder(latents))
    registers = model.decoder.condition(codes, case["ragged/keep_k"])
    velocity = model.decoder.velocity(mix(latents, noise, t), t, registers)
    near(velocity.detach(), case["train/velocity"], "train/velocity", 5e-5)
    loss = (velocity - velocity_target(latents, noise)).square().mean()
    near(loss.detach(), case["train/loss"], "train/loss")
    loss.backward()
    found = to_published({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, wanted in case.below("train/grad/").items():
        close(found[name], wanted, f"gradient of {name}", relative=1e-3, absolute=2e-5)
