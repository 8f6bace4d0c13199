"""Parts of a FlexTok: quantisation, nested dropout, positions and times, patches and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred.tokenizers.flextok.blocks import modulate
from tokred.tokenizers.flextok.dropout import LAWS, drop_all, drop_tail, first_registers, keep_law
from tokred.tokenizers.flextok.masks import attention_mask
from tokred.tokenizers.flextok.patches import patchify, unpatchify
from tokred.tokenizers.flextok.positions import Positions, sincos_table
from tokred.tokenizers.flextok.quantize import FSQ
from tokred.tokenizers.flextok.times import PERIOD, TimeEmbedding

from ..case import Case, checks
from ..compare import close, near, same


@checks("", lambda case: "level_sets" in case.hyper)
def check_quantisation(case: Case) -> None:
    """Every set of levels: bound, codes, ids, their inverse, and the gradient through the rounding."""
    for name in sorted({name.split("/")[0] for name in case.names if name.endswith("/levels")}):
        fsq = FSQ(case[f"{name}/levels"].tolist())
        same(fsq.basis, case[f"{name}/basis"], f"{name}/basis")
        z = case[f"{name}/z"].clone().requires_grad_()
        bounded = fsq.bound(z).detach()
        near(bounded, case[f"{name}/bounded"], f"{name}/bounded")
        near(margin(bounded), case[f"{name}/margin"], f"{name}/margin")
        codes, ids = fsq(z)
        near(codes.detach(), case[f"{name}/codes"], f"{name}/codes")
        same(ids, case[f"{name}/tokens"], f"{name}/tokens")
        same(fsq.ids_of(codes.detach()), case[f"{name}/tokens"], f"{name}/tokens of codes")
        near(fsq.codes_of(ids), case[f"{name}/codes"], f"{name}/codes of tokens")
        near(fsq.codes_of(case[f"{name}/ids"]), case[f"{name}/ids_codes"], f"{name}/ids_codes")
        (codes * case[f"{name}/grad_out"]).sum().backward()
        close(z.grad, case[f"{name}/grad_z"], f"{name}/grad_z", absolute=2e-5)
    fsq = FSQ(case.hyper["level_sets"][0])
    for name in (name for name in case.names if name.startswith("packed/z")):
        codes, ids = fsq(case[name])
        near(codes, case[name.replace("/z", "/codes")], name)
        same(ids, case[name.replace("/z", "/tokens")], name)


def margin(bounded: Tensor) -> Tensor:
    """How near the nearest value is to where rounding changes."""
    return (bounded - bounded.floor() - 0.5).abs().min()


@checks("", lambda case: case.has("keep_k", "mask_token", "dropped"))
def check_dropout(case: Case) -> None:
    """Tokens that are dropped, null conditions, fewer registers, and how often each k is drawn."""
    x = case["x"]
    dropped = drop_tail(x, case["keep_k"], case["mask_token"])
    same(dropped, case["dropped"], "dropped")
    same(drop_tail(x, torch.full((len(x),), x.shape[1]), case["mask_token"]), case["no_key"], "no_key")
    same(drop_all(dropped, case["drop_flags"], case["nullcond"]), case["null_learned"], "null_learned")
    same(drop_all(dropped, case["drop_flags"], torch.zeros(x.shape[-1])), case["null_zero"], "null_zero")
    for prefix, ordering in (("registers_nested_", "nested"), ("registers_avgpool_", "pooled")):
        for count, wanted in case.below(prefix).items():
            near(first_registers(case["registers"], int(count), ordering)[None], wanted, f"{prefix}{count}")
    laws = torch.stack([keep_law(law, x.shape[1]) for law in LAWS])
    near(laws, case["keep_law"], "keep_law", 1e-6)


@checks("", lambda case: case.has("sincos_crop", "sincos_interp"))
def check_positions(case: Case) -> None:
    """Fixed and learned tables, cropped and resized."""
    dim, big = case.hyper["dim"], case.hyper["big"]
    for name, wanted in case.below("sincos_").items():
        if name not in ("crop", "interp"):
            height, width = map(int, name.split("x"))
            near(sincos_table(dim, height, width), wanted, name)
    for name, scaling in (("crop", "absolute"), ("interp", "interpolate")):
        wanted = case[f"sincos_{name}"]
        near(Positions(dim, (big, big), scaling=scaling).codes(*wanted.shape[2:]), wanted, name)
    for name, kind in (("learn2d_sum", "learned_sum"), ("learn2d_prod", "learned_product"), ("learn1d", "learned_sum")):
        table, wanted = case[f"{name}_table"], case[f"{name}_out"]
        positions = Positions(dim, table.shape[-1:] * len(table), kind)
        positions.load_state_dict({"table": table})
        near(positions.codes(*wanted.shape[2:]).detach(), wanted, name)
        near(positions(*wanted.shape[2:]).detach(), wanted.flatten(2).transpose(1, 2), name)


@checks("", lambda case: "frequency_embedding_size" in case.hyper)
def check_times(case: Case) -> None:
    """The embedding of times in [0, 1] and in [0, 1000]."""
    assert case.hyper["max_period"] == PERIOD
    groups = {name.split("/")[0] for name in case.names if name.startswith("temb_max")}
    for name in sorted(groups):
        largest = float(name.removeprefix("temb_max"))
        embedding = TimeEmbedding(case.hyper["dim"], case.hyper["frequency_embedding_size"], largest)
        weights = case.below(f"{name}/param/mlp.")
        embedding.load_state_dict(
            {key.replace("0.", "hidden.").replace("2.", "out."): value for key, value in weights.items()}
        )
        near(embedding.features(case[f"{name}/t"]), case[f"{name}/freq"], f"{name}/freq")
        near(embedding(case[f"{name}/t"]).detach(), case[f"{name}/out"], f"{name}/out")


@checks("", lambda case: case.has("packed", "mask_causal_last"))
def check_packing(case: Case) -> None:
    """Our batches, laid out in one row as the reference does, with the masks of each sample on the diagonal."""
    shapes, total = case.hyper["shapes"], case["packed"].shape[1]
    rows = [torch.cat([case[f"patches{i}"].flatten(1, 2), case[f"registers{i}"]], 1)[0] for i in range(len(shapes))]
    near(_row(rows, total), case["packed"], "packed")
    for name, mode in (("causal_last", "prefix"), ("causal", "causal"), ("full", "full")):
        masks = []
        for height, width, registers in shapes:
            tokens = height * width + registers
            mask = attention_mask(mode, height * width, registers)
            masks.append(torch.ones(tokens, tokens, dtype=torch.bool) if mask is None else mask)
        found = torch.zeros(total, total, dtype=torch.long)
        filled = torch.block_diag(*(mask.long() for mask in masks))
        found[: len(filled), : len(filled)] = filled
        same(found, case[f"mask_{name}"], f"mask_{name}")
    for name, groups in (("emb", 2), ("emb_shared", 1)):
        numbers = case[name].unflatten(-1, (groups, -1))
        rows = []
        for shift, (height, width, registers) in zip(numbers, shapes, strict=True):
            sizes = (height * width, registers) if groups == 2 else (height * width + registers,)
            nothing = torch.zeros(1, sum(sizes), shift.shape[-1])
            rows.append(modulate(nothing, shift[None], torch.zeros_like(shift[None]), sizes)[0])
        near(_row(rows), case[f"{name}_packed"], f"{name}_packed")


def _row(rows: list[Tensor], total: int | None = None) -> Tensor:
    packed = torch.cat(rows)
    return torch.nn.functional.pad(packed, (0, 0, 0, (total or len(packed)) - len(packed)))[None]


@checks("", lambda case: case.has("patchify_in", "patchify_out"))
def check_patches(case: Case) -> None:
    """The order of numbers in a patch vector, and the way back."""
    images, wanted = case["patchify_in"].permute(0, 3, 1, 2), case["patchify_out"]
    patch = images.shape[2] // wanted.shape[1]
    near(patchify(images, patch), wanted.flatten(1, 2), "patchify_out")
    near(unpatchify(wanted.flatten(1, 2), patch, *wanted.shape[1:3]), images, "patchify_in")
