# %% [markdown]
# # A method of your own
#
# [Adding a method](../guides/adding-a-method.md) writes one for the inside of an encoder. This one stands between the
# image encoder and the language model of a multimodal model: keep the patches that differ most from the mean.
#
# Such a method is a `FeatureMethod`: it sees one image, its visual tokens, and where each of them comes from.

# %%
from dataclasses import dataclass
from typing import ClassVar

import torch

import tokred
from tokred.data import load_vqa
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("unusual")
@dataclass(frozen=True, kw_only=True)
class Unusual(FeatureMethod):
    """Keep the visual tokens that are furthest from their mean."""

    paper: ClassVar[str] = "an example of the documentation"
    reads_attention: ClassVar[bool] = False  # so it works with every encoder

    def reduce(self, view: FeatureView) -> TokenMap:
        """Choose by distance; the order in which the language model reads them stays."""
        layout = view.layout
        patches = (~layout.newline).nonzero().squeeze(1)
        rows = view.features[patches].float()
        distance = (rows - rows.mean(dim=0)).norm(dim=1)
        order = distance.argsort(descending=True, stable=True)[: self.in_all(len(patches))]
        return keep_tokens(layout, patches[order], self.newlines)


# %% [markdown]
# It can be tried without any model: a map is data.

# %%
method = Unusual(keep=0.25)
assert method.zero() == Unusual(keep=1.0)

# %% [markdown]
# Now in the multimodal model that ships. The model, the processor and `generate` stay as they are.

# %%
model, processor = tokred.load_multimodal("llava-shapes")
example = load_vqa("easy-vqa-sample")[0]
turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
inputs = processor(images=[example.image], text=[prompt], return_tensors="pt")

with tokred.patch(model, method) as handle:
    out = model.generate(**inputs, max_new_tokens=4)
    [counted] = handle.trace.visual_tokens
    handle.trace.overlay(example.image[None])[0].save("what_the_language_model_saw.png")

print(example.question, processor.batch_decode(out[:, inputs.input_ids.shape[1] :]))
assert (counted.patches, counted.all_patches) == (64, 256)

# %% [markdown]
# Keeping everything must change nothing, which is the first test that every method gets:

# %%
with torch.no_grad():
    whole = model(**inputs).logits
    with tokred.patch(model, method.zero()):
        assert torch.allclose(model(**inputs).logits, whole, atol=1e-4)

# %% [markdown]
# `tokred sweep` takes it by its name, `unusual`, in any process that has imported it; a package of your own names it
# as an entry point `tokred.methods`. Before you believe in it, beat `random_visual` ([Benchmarks](../benchmarks.md)).
