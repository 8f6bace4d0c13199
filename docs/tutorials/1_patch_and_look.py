# %% [markdown]
# # Patch and look
#
# What a patch does to a model, what it leaves of an image, and how to get everything back. Runs offline in seconds:
# `python docs/tutorials/1_patch_and_look.py`, or cell by cell in an editor that knows `# %%`.

# %%
import torch

import tokred
from tokred.assets import load_model
from tokred.data import load_dataset, transform_for

model = load_model("vit-fmnist")
data, transform = load_dataset("fashion-mnist-sample"), transform_for(model)
images = torch.stack([transform(data[i][0]) for i in range(8)])
unpatched = model(images)

# %% [markdown]
# `vit-fmnist` has 196 patches and a class token, and eight blocks. ToMe merges `r` pairs in every block. Nothing but
# this one line is needed; `trace=True` asks for a record of what happens.

# %%
handle = tokred.patch(model, tokred.ToMe(r=16), trace=True)
patched = model(images)
trace = handle.trace
print("tokens behind every block:", trace.tokens_per_layer)
assert trace.tokens_per_layer[0] == 197 - 16

# %% [markdown]
# How much the answers moved:

# %%
agreement = (patched.argmax(dim=1) == unpatched.argmax(dim=1)).float().mean()
print(f"{agreement:.0%} of the answers are the same")

# %% [markdown]
# The trace knows where every patch went: its slot in the shorter sequence, and how many patches a slot stands for.
# Sizes add up to what there was, since merging loses nothing.

# %%
assert trace.patch_slot().shape == (8, 196)
assert torch.all(trace.sizes().sum(dim=1) == 197)
print("the largest token stands for", int(trace.sizes().max()), "patches")

# %% [markdown]
# Pictures, behind any block. Merged regions are outlined and filled with their mean colour.

# %%
for layer in (0, 3, 7):
    trace.overlay(images, layer=layer)[0].save(f"behind_block_{layer}.png")

# %% [markdown]
# ![Images, and what ToMe, PiToMe and Top-K leave of them](../images/overlay.png)
#
# Dense features come back by copying every token to the patches that it stands for:

# %%
short = torch.randn(8, trace.tokens_per_layer[-1], 96)
assert trace.unmerge(short).shape == (8, 197, 96)

# %% [markdown]
# What does it cost? Counted before anything runs, and solved the other way round: a budget instead of a knob.

# %%
handle.remove()
assert torch.equal(model(images), unpatched)  # every bit as before

with tokred.patch(model, tokred.ToMe(budget="50%")) as handle:
    shape = handle.tower.shape
    print(f"{handle.method.cost(shape).gmacs:.3f} of {tokred.cost(shape).gmacs:.3f} GMACs")

# %% [markdown]
# Whether it pays on your machine is what [`tokred explain`](../when-not-faster.md) says. The next tutorial
# [measures several methods](2_a_sweep_of_your_own.py).
