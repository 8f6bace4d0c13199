"""KARL: which tokens halt, who sees whom, the losses of halting, and requested errors."""

from __future__ import annotations

import torch

from tokred.tokenizers.halting import (
    GRID,
    attention_allowed,
    grid_index,
    halt_loss,
    halting_loss,
    halting_target,
    is_halted,
    keep_loss,
)

from ..case import Case, checks
from ..compare import near, same


@checks("", lambda case: case.has("halt_logits", "blocked", "first_phase_budget"))
def check_halting(case: Case) -> None:
    """Everything from the logits."""
    logits, budget = case["halt_logits"], int(case["first_phase_budget"])
    tokens = logits.shape[1]
    near(logits.sigmoid(), case["halt_prob"], "halt_prob")
    halted = is_halted(logits, case.hyper["threshold"])
    same(halted.long(), case["halted"], "halted")
    same(tokens - halted.sum(1), case["token_count"], "token_count")
    same((~attention_allowed(halted, case.hyper["n_img"])).long(), case["blocked"], "blocked")
    same(halting_target(tokens, budget), case["halt_target"], "halt_target")
    near(keep_loss(logits[:, :budget]), case["loss_active"], "loss_active")
    near(halt_loss(logits[:, budget:]), case["loss_halt"], "loss_halt")
    near(halting_loss(logits, budget), case["loss_active"] + case["loss_halt"], "both losses")
    near(halting_loss(logits, tokens), case["loss_active_only"], "loss_active_only")
    grid = torch.tensor(GRID)
    near(grid, case["quality_levels"], "quality_levels", 1e-7)
    index = grid_index(case["quality_request"], case["quality_levels"])
    same(index, case["quality_bin"], "quality_bin")
    near(grid[index], case["quality_value"], "quality_value", 1e-7)
