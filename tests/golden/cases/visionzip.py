"""VisionZip: dominant patches and contextual tokens."""

from __future__ import annotations

import torch

from tokred.layout import VisualLayout
from tokred.methods.visionzip import VisionZip

from ..case import Case, checks
from ..compare import close, same
from ..features import class_rows, view


@checks("visionzip", lambda case: case.has("cls_attention", "hidden", "metric", "output"))
def check_visionzip(case: Case) -> None:
    """Image by image; the class token, which the vectors put in front, is no visual token here."""
    hyper, hidden = case.hyper, case["hidden"]
    dominant, contextual = hyper["dominant_without_cls"], hyper["contextual"]
    method = VisionZip(keep=dominant + contextual, contextual=contextual)
    attention = class_rows(case["cls_attention"], case["metric"])
    kept, output = [], []
    for number, tokens in enumerate(hidden):
        layout = VisualLayout.plain((1, len(tokens) - 1))
        token_map = method.reduce(view(layout, attention, tokens[1:], number))
        kept.append(token_map.kept[:, :dominant])
        output.append(torch.cat([tokens[:1], token_map.apply(tokens[1:].unsqueeze(0))[0]]))
    same(torch.cat(kept), case["kept_dominant"], "kept_dominant")
    close(torch.stack(output), case["output"], "output", absolute=1e-5)
