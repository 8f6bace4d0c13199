"""Whole multimodal models: what is kept, next-token logits and greedy continuations of every reduction."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import tokred
from tokred.methods.fopru import significance

from ..case import Case, checks
from ..compare import close, same

CLASSES = {"llava": "Llava", "llava_next": "LlavaNext"}


@checks("model_*", lambda case: case.has("input_ids", "pixel_values", "logits_full"))
def check_model(case: Case) -> None:
    """Each reduction through the patched model of transformers, against the numbers of a run by hand."""
    model, inputs = _model(case), _inputs(case)
    with torch.no_grad():
        close(model(**inputs).logits[0, -1], case["logits_full"], "logits_full", absolute=1e-4)
    names = sorted({name.split("/")[0] for name in case.names if "/" in name})
    for name in names:
        _check_reduction(case, model, inputs, name)


def _check_reduction(case: Case, model: Any, inputs: dict[str, Tensor], name: str) -> None:
    steps = len(case[f"{name}/greedy"])
    with torch.no_grad(), tokred.patch(model, _method(case, name)) as handle:
        logits = model(**inputs).logits
        sequences = model.generate(**inputs, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0)
        cut = handle.language.last.cut
        image = handle.trace.images[0]
    close(logits[0, -1], case[f"{name}/logits"], f"{name}/logits", absolute=1e-4)
    same(sequences[0, -steps:], case[f"{name}/greedy"], f"{name}/greedy")
    same(torch.tensor([cut.num_slots]), case[f"{name}/seq_len"], f"{name}/seq_len")
    layout, kept = image.layout, image.anchor
    token = layout.row[kept] * layout.grid[1] + layout.column[kept]
    if case[f"{name}/kept"].ndim == 1:
        same(token, case[f"{name}/kept"], f"{name}/kept")
    else:
        token = torch.where(layout.newline[kept], -1, token)
        same(torch.stack([layout.partition[kept], token], dim=1), case[f"{name}/kept"], f"{name}/kept")
    for what in ("budgets", "chosen_dim"):
        if case.has(f"{name}/{what}"):
            same(_spied(model, inputs, _method(case, name), what), case[f"{name}/{what}"], f"{name}/{what}")


def _method(case: Case, name: str) -> Any:
    """The reduction that a name such as ``hired_20_code`` and the hyper-parameters describe."""
    kind, *rest = name.rsplit("_", 2) if name.startswith("hired") and name.count("_") == 2 else name.rsplit("_", 1)
    share = int(rest[0]) / 100
    if kind == "fopru_rank":
        return tokred.FoPru(keep=share)
    if kind == "vtc_cls":
        first = case.hyper["vtc_cls"].split("layers ")[1].split("..")[0]
        return tokred.VTCCLS(keep=share, start=int(first))
    assert kind == "hired", name
    allocation = {"code": "released", "paper": "paper"}[rest[1]] if len(rest) > 1 else "paper"
    return tokred.HiRED(keep=share, allocation=allocation)


def _spied(model: Any, inputs: dict[str, Tensor], method: Any, what: str) -> Tensor:
    """[P] a step on the way: HiRED's budgets, or which mean FoPru takes (0 received, 1 given)."""
    seen = []

    class Spy(type(method)):
        def reduce(self, view: Any) -> Any:
            if what == "budgets":
                seen.append(self.budgets(view.saliency(0, heads="sum")[0], view.layout))
            else:
                seen.append(significance(view.received(), view.given())[1])
            return super().reduce(view)

    with torch.no_grad(), tokred.patch(model, Spy(**method.describe())):
        model(**inputs)
    return torch.cat(seen).flatten()


def _model(case: Case) -> Any:
    stem = case.path.name.removesuffix("__io.safetensors")
    config = json.loads((case.path.parent / f"{stem}__config.json").read_text())
    name = CLASSES[config["model_type"]]
    model = getattr(transformers, f"{name}ForConditionalGeneration")(getattr(transformers, f"{name}Config")(**config))
    weights = load_file(case.path.parent / f"{stem}__weights.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval()


def _inputs(case: Case) -> dict[str, Tensor]:
    inputs = {"input_ids": case["input_ids"][None], "pixel_values": case["pixel_values"]}
    if case.has("image_sizes"):
        inputs |= {"pixel_values": case["pixel_values"][None], "image_sizes": case["image_sizes"]}
    return inputs
