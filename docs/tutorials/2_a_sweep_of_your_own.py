# %% [markdown]
# # A sweep of your own
#
# Does merging beat chance at the same budget? The numbers of images and rounds are small so that this runs in seconds;
# what comes out is an example, and no measurement. Needs `pip install 'tokred[sweep]'`.

# %%
from tokred import ConfigError
from tokred.sweep import Document, parse_spec, plot_results, preview, read_results, run_sweep

wanted = {
    "models": ["vit-fmnist"],
    "data": ["fashion-mnist-sample"],
    "images": 20,
    "batch_size": 10,
    "rounds": 1,
    "methods": [
        {"method": "tome", "budget": {"grid": ["70%", "50%"]}},
        {"method": "random", "budget": {"grid": ["70%", "50%"]}},  # what the others must beat
    ],
}
spec = parse_spec(Document(wanted))
print(len(spec.points()), "points, the unpatched model among them")

# %% [markdown]
# A wrong name is found before anything runs, and the message says what was meant:

# %%
try:
    parse_spec(Document({**wanted, "methods": [{"method": "tome", "bugdet": "70%"}]}))
except ConfigError as error:
    print(error)

# %% [markdown]
# `preview` counts tokens and MACs without running a model; that is `tokred sweep --dry-run`.

# %%
planned = preview(spec)
assert len(planned) == len(spec.points())

# %% [markdown]
# Now measure. Every finished point is on disk at once, so that the same call with `resume=True` goes on after an
# interruption.

# %%
rows = run_sweep(spec, "my_sweep")
for row in sorted(rows, key=lambda row: row["gmacs"]):
    shown = f"{row['gmacs']:.3f} GMACs  top-1 {row['top1']:5.1f} %  {row['speedup'] or 1:.2f}x"
    print(f"{row['method']:10} {row['label']:12} {shown}")

again = run_sweep(spec, "my_sweep", resume=True)
assert len(again) == len(rows)

# %% [markdown]
# The same as a table of Arrow, and as a picture with its Pareto front:

# %%
table = read_results("my_sweep")
assert len(table) == len(rows)
for path in plot_results("my_sweep", "gmacs", "agreement"):
    print(path)

# %% [markdown]
# ![The quickstart sweep, which is the same with more images and methods](../images/quickstart.png)
#
# As a file, the same sweep is what [Writing a sweep](../guides/sweeps.md) describes.
