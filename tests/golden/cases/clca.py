"""CLCA: the aggregation head, and whole models with carried tokens."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokred
from tokred.methods.clca import CLCA, AggregationHead

from ..case import Case, checks
from ..compare import LOGITS, near, same

_AROUND = {"evit": "evit", "topk": "topk", "vit": None}


@checks("clca", lambda case: case.has("x", "logits") and "kernels_per_layer" in case.hyper)
@torch.no_grad()
def check_head(case: Case) -> None:
    """Logits from class tokens of several layers."""
    hyper = case.hyper
    head = AggregationHead(hyper["dim"], hyper["layers"], hyper["classes"], hyper["kernels_per_layer"]).eval()
    _load_head(head, case.below("sd."))
    near(head(case["x"]), case["logits"], "logits")


@checks("clca", lambda case: case.has("image", "cls_per_block", "tokens_in_out"))
@torch.no_grad()
def check_model(case: Case) -> None:
    """Tokens that enter and leave every block, its class token, and the logits of the head."""
    hyper, weights = case.hyper, case.state_dict()
    model, offset = _model(case.constructor_kwargs, weights, hyper["num_clr"])
    (keep,) = hyper["keep_rate"]
    method = CLCA(
        around=_AROUND[hyper["kind"]],
        keep=float(keep),
        layers=tuple(hyper["reduction_loc"]),
        carriers=hyper["num_clr"],
        cache=hyper["clc"],
        means=hyper["clc_include_gap"],
        recover_at_last=hyper["clc_recover_at_last"],
        classes=case["logits"].shape[1] if hyper["ifa_head"] else 0,
        kernels=hyper["ifa_dws_conv_groups"],
        variant="released",
    )
    rows: list[Tensor] = []
    with tokred.patch(model, method) as handle:
        if offset is not None:
            handle.modules["carriers"].offset.copy_(offset)
        _load_head(handle.modules["head"], case.below("sd.ifa_head."))
        for block in model.blocks:
            block.register_forward_hook(lambda _module, _inputs, output: rows.append(output[:, 0]))
        inside = _tokens_inside(handle)
        near(model(case["image"]), case["logits"], "logits", LOGITS)
        near(torch.stack(rows, dim=1), case["cls_per_block"], "cls_per_block", LOGITS)
        same(torch.tensor(inside), case["tokens_in_out"], "tokens_in_out")
        tokens = handle.schedule.tokens(handle.tower.shape.num_tokens)
        entering = (handle.tower.shape.num_tokens, *tokens[:-1])
        carried = method.carried(handle.tower.shape)
        counted = [[n + g, m + h] for n, m, (g, h) in zip(entering, tokens, carried, strict=True)]
        same(torch.tensor(counted), case["tokens_in_out"], "tokens_in_out by the schedule")


def _tokens_inside(handle: tokred.Handle) -> list[list[int]]:
    """Tokens in the attention and in the MLP of every block, filled while the model runs."""
    counts: list[list[int]] = []
    for block in handle.tower.blocks:
        block.attn.register_forward_pre_hook(lambda _module, inputs: counts.append([inputs[0].shape[1]]))
        block.mlp.register_forward_pre_hook(lambda _module, inputs: counts[-1].append(inputs[0].shape[1]))
    return counts


def _model(kwargs: dict[str, Any], weights: dict[str, Tensor], carriers: int) -> tuple[nn.Module, Tensor | None]:
    """The model without its carriers, and what these add to the class token that enters the first block."""
    model = VisionTransformer(**kwargs)
    model.norm = nn.Identity()
    own = {name: value for name, value in weights.items() if not name.startswith(("clr", "ifa_head."))}
    places = own["pos_embed"]
    own["pos_embed"] = places[:, : places.shape[1] - carriers]
    model.load_state_dict(own)
    if not carriers:
        return model.eval(), None
    start = own["cls_token"] + places[:, :1]
    return model.eval(), (weights["clr"] + places[:, places.shape[1] - carriers :] - start)[0]


def _load_head(head: nn.Module, weights: dict[str, Tensor]) -> None:
    head.load_state_dict({f"layers.{name.removeprefix('0.')}": value for name, value in weights.items()})
