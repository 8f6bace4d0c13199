"""Rectified flow: times, noising, the loss, Euler steps; plain and projected guidance."""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor

from tokred.tokenizers.flextok.flow import follow, mix, velocity_target
from tokred.tokenizers.flextok.guidance import Projected, plain
from tokred.tokenizers.flextok.times import logit_normal, mode_biased, noisy, stratified

from ..case import Case, checks
from ..compare import close, near

_MODE_SCALES = re.compile(r"mode_scale ([\d.]+)")


@checks("", lambda case: case.has("x0", "noise", "target", "toy/param/W"))
def check_flow(case: Case) -> None:
    """Times from their draws, pictures on the way, the loss, and where a toy velocity leads."""
    x0, noise = case["x0"], case["noise"]
    meaning = case.meaning
    laws = {"logit_normal": logit_normal, "stratified": stratified, "uniform": lambda u: u, "noisy": noisy}
    for name in sorted(name.removesuffix("/draw") for name in case.names if name.endswith("/draw")):
        law = laws.get(name)
        if law is None:
            law = partial(mode_biased, scale=float(_MODE_SCALES.search(meaning[f"{name}/*"]).group(1)))
        t = law(case[f"{name}/draw"])
        near(t, case[f"{name}/sigma"], f"{name}/sigma")
        near(mix(x0, noise, t), case[f"{name}/xt"], f"{name}/xt")
    near(velocity_target(x0, noise), case["target"], "target")
    xt = mix(x0, noise, case["loss_t"])
    near(xt, case["loss_xt"], "loss_xt")
    v = _toy(case, xt, case["loss_t"], case["z"])
    near(v, case["loss_v"], "loss_v")
    near((v - case["target"]).square().mean(), case["loss"], "loss")
    for name, wanted in case.below("sample/").items():
        close(_sample(case, name), wanted, f"sample/{name}", relative=1e-3, absolute=1e-4)


def _toy(case: Case, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    W, U, b = (case[f"toy/param/{name}"] for name in "WUb")
    mixed = torch.einsum("ij,bjhw->bihw", W, x) + torch.einsum("ij,bjhw->bihw", U, z)
    return 2 * torch.tanh(mixed + t.view(-1, 1, 1, 1) * b.view(1, -1, 1, 1))


def _sample(case: Case, name: str) -> Tensor:
    """``cond_4``, ``cfg3_20``, ``apg7.5_20``; ``cfg_callable`` has the largest number of steps."""
    kind, _, steps = name.rpartition("_")
    guidance = float(re.sub(r"[a-z]", "", kind) or 1)
    if steps == "callable":
        assert case.hyper["cfg_callable"].startswith("w(t)=1+4t")
        steps, guidance = max(case.hyper["steps"]), lambda t: 1 + 4 * t
    return follow(
        lambda x, t: _toy(case, x, t, case["z"]),
        case["noise"],
        int(steps),
        unconditional=lambda x, t: _toy(case, x, t, torch.zeros_like(case["z"])),
        guidance=guidance,
        projected=Projected() if kind.startswith("apg") else None,
    )


@checks("", lambda case: "guidance_scale_apg" in case.hyper and case.has("cond", "uncond"))
def check_guidance(case: Case) -> None:
    """Both kinds of guidance on consecutive predictions."""
    hyper, cond, uncond = case.hyper, case["cond"], case["uncond"]
    near(plain(cond, uncond, hyper["guidance_scale_cfg"]), case["cfg"], "cfg", 1e-4)
    scale = hyper["guidance_scale_apg"]
    common = {"momentum": hyper["momentum"], "threshold": hyper["norm_threshold"], "eta": hyper["eta"]}
    for name, changes in hyper["variants"].items():
        knobs = common | {key.replace("norm_threshold", "threshold"): value for key, value in changes.items()}
        alone = [Projected(**knobs)(c, u, scale) for c, u in zip(cond, uncond, strict=True)]
        close(torch.stack(alone), case[f"apg_{name}_nomomentum"], name, 1e-3, 1e-4)
        guidance, running, together = Projected(**knobs), [], []
        for c, u in zip(cond, uncond, strict=True):
            together.append(guidance(c, u, scale))
            running.append(guidance.running)
        close(torch.stack(together), case[f"apg_{name}_momentum"], name, 1e-3, 1e-4)
        if not changes:
            near(torch.stack(running), case["running_average"], "running_average")
