"""Every number of the README stands in a committed results file."""

import itertools
import json
import re
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tokred
from tests.adapters import zoo_multimodal
from tokred.adapters import registry
from tokred.assets import load_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_accuracy_of_the_embedded_models_is_the_measured_one():
    quoted = re.findall(r"`(vit-fmnist[a-z-]*)`[^`]*?, (\d\d\.\d\d) %", README)
    assert {name for name, _ in quoted} == {"vit-fmnist", "vit-fmnist-reg"}
    for name, top1 in quoted:
        record = json.loads((ROOT / "models" / name / "accuracy.json").read_text())
        assert f"{100 * record['test_correct'] / record['test_total']:.2f}" == top1


def test_the_exact_match_of_the_multimodal_model_is_the_measured_one():
    record = json.loads((ROOT / "models" / "llava-shapes" / "accuracy.json").read_text())
    percent = 100 * record["test_correct"] / record["test_total"]
    text = f"`llava-shapes` answers {percent:.2f} % of its {record['test_total']:,} test questions"
    assert text in " ".join(README.split())


def test_the_exact_match_of_the_model_with_tiles_is_the_measured_one():
    record = json.loads((ROOT / "models" / "llava-next-shapes" / "accuracy.json").read_text())
    text = (
        f"answers {record['test_exact_match']:.2f} % of its {record['test_total']:,} test questions about mosaics, "
        f"{record['coarse_exact_match']:.2f} % where tiles hold no more detail than the thumbnail and "
        f"{record['tiles_hidden_exact_match']:.2f} % where tiles are hidden"
    )
    assert text in " ".join(README.split())


def test_the_recalls_of_the_embedded_clip_are_the_measured_ones():
    record = json.loads((ROOT / "models" / "clip-shapes" / "accuracy.json").read_text())
    text = (
        f"`clip-shapes` finds a right caption first for {record['image_to_text_r1']:.1f} % of {record['images']:,} "
        f"test pictures and the right picture for {record['text_to_image_r1']:.1f} % of their captions"
    )
    assert text in " ".join(README.split())
    card = (ROOT / "models" / "clip-shapes" / "README.md").read_text()
    names = ("image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5", "zero_shot_top1")
    rows = re.findall(r"^\| [^|]* \| \*\*(\d+\.\d)(?:, (\d+\.\d))? %\*\*", card, flags=re.MULTILINE)
    assert [number for row in rows for number in row if number] == [f"{record[name]:.1f}" for name in names]


def test_the_number_of_tested_multimodal_models_is_right():
    assert f"{len(zoo_multimodal.NAMES)} of them are tested" in " ".join(README.split())


def test_the_coverage_is_the_recorded_one():
    record = json.loads((ROOT / "docs" / "coverage.json").read_text())
    [(names, version)] = re.findall(r"All (\d+) names of timm (\d+\.\d+\.\d+) pass", README.replace("\n", " "))
    assert (int(names), version) == (record["pass"], record["timm"])
    assert record["pass"] == record["names"]


def test_the_results_table_is_what_the_sweep_measured():
    results = pl.read_parquet(ROOT / "docs" / "results" / "quickstart.parquet")
    rows = re.findall(r"^\| (?:`(\w+)`|unpatched) \| (\d+)% \| (.*) \|$", README, flags=re.MULTILINE)
    assert len(rows) > 10
    for method, budget, cells in rows:
        label = f"budget={budget}%" if method else ""
        found = results.filter((pl.col("method") == (method or "unpatched")) & (pl.col("label") == label))
        expected = []
        for model in ("vit-fmnist", "vit-fmnist-reg"):
            [point] = found.filter(pl.col("model") == model).iter_rows(named=True)
            expected += [f"{point['top1']:.1f}", f"{point['agreement']:.1f}", f"{point['speedup']:.2f}x"]
        assert cells.split(" | ") == expected, method
    assert set(results["images"]) == {500}, "the text says how many images"
    assert results["seconds"].sum() < 240, "the sweep says that it takes less than four minutes"


@pytest.mark.parametrize("library", ["timm", "open_clip", "transformers"])
def test_the_table_of_models_is_that_of_the_registry(library):
    [adapter] = [a for a in registry.all() if a.name == library]
    assert f"| {library} | {', '.join(adapter.supported())} |" in README


def test_the_tables_are_made_from_the_results():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    pages = {page: page.read_text() for page in tables["PAGES"]}
    found = [name for text in pages.values() for name in re.findall(r"<!-- table: (\w+) -->", text)]
    assert sorted(found) == sorted(tables["TABLES"])
    wrong = [page.name for page, text in pages.items() if tables["write_tables"](text) != text]
    assert not wrong, "run: python docs/tables.py"


def test_the_page_says_on_what_speed_was_measured():
    record = json.loads((ROOT / "docs" / "results" / "bench_tome.json").read_text())
    assert record["device"] in PAGE
    assert f"{record['rounds']} for every r in each of {record['processes']} fresh processes" in PAGE
    kept = json.loads((ROOT / "docs" / "results" / "bench_tome_heap_kept.json").read_text())
    assert record["allocator"] == {}
    assert set(kept["allocator"].values()) == {"10000000000"}
    assert kept["device"] == record["device"]
    assert (kept["rounds"], kept["processes"]) == (record["rounds"], 3)
    assert all(f"{name} {version}" in PAGE for name, version in record["versions"].items())


def test_the_text_on_the_search_is_what_was_measured():
    record = json.loads((ROOT / "docs" / "results" / "search_zerotprune_test.json").read_text())
    assert {row["images"] for row in record["results"]} == {10_000}
    search = json.loads((ROOT / "docs" / "results" / "search_zerotprune.json").read_text())
    assert f"{len(search['trials'])} trials" in PAGE


def test_the_text_on_learning_is_what_was_measured():
    record = json.loads((ROOT / "docs" / "results" / "learn_diffrate.json").read_text())
    rows = record["results"]
    assert {row["images"] for row in rows} == {10_000}
    assert len(record["screened"]) == 20

    def best(group: str) -> float:
        return max(row["top1"] for row in rows if row["group"] == group and row["share"] <= 0.6 and "tracks" in row)

    [learned] = [row for row in rows if row["group"] == "DiffRate, learned"]
    text = " ".join(PAGE.split())
    assert (
        f"learned {learned['top1']:.2f}, best hand-made {best('DiffRate, hand-made'):.2f}, best constant r within the "
        f"cost {best('ToMe, constant r'):.2f}."
    ) in text
    share = learned["top1"] / 100
    whole = json.loads((ROOT / "models" / "vit-fmnist" / "accuracy.json").read_text())["test_top1"]
    assert f"the model without any reduction has {whole:.2f}." in text
    assert f"of an accuracy here is {100 * (share * (1 - share) / 10_000) ** 0.5:.2f} points" in text
    also = {row["name"]: row["top1"] for row in rows if row["group"] == "DiffRate, also learned"}
    even = [f"{also[f'even start, {steps} steps']:.2f}" for steps in (2400, 800)]
    assert f"came to {even[0]} and {even[1]} in 2,400 and 800 steps" in text
    shipped = tokred.Schedule.load("vit_fmnist_0.119g")
    assert {track: list(counts) for track, counts in shipped.tracks.items()} == learned["tracks"]


def test_the_text_on_the_misses_in_speed_is_what_was_measured():
    record = json.loads((ROOT / "docs" / "results" / "bench_tome.json").read_text())
    reached = {point["r"]: point["measured_over_ideal"] for point in record["results"]}
    text = " ".join(PAGE.split())
    assert reached[0] >= 0.98
    assert min(reached[8], reached[13]) >= 0.97
    assert f"met at r=0, r=8 and r=13, and missed at r=16 by {0.97 - round(reached[16], 3):.3f}." in text


def test_the_text_on_all_methods_is_what_was_measured():
    results = pl.read_parquet(ROOT / "docs" / "results" / "methods.parquet")
    assert set(results["status"]) == {"finished"}
    assert set(results["images"]) == {1000}
    assert set(tokred.methods()) == set(results["method"]) - {"unpatched"}, "every method has its curve"
    whole = results.filter(pl.col("method") == "unpatched")["top1"][0] / 100
    assert f"of an accuracy is {100 * (whole * (1 - whole) / 1000) ** 0.5:.1f} points here" in " ".join(PAGE.split())


def test_fine_tuning_was_measured_on_all_test_images():
    record = json.loads((ROOT / "docs" / "results" / "finetune_evit.json").read_text())
    assert {row["images"] for row in record["results"]} == {10_000}
    whole, before, after = (row["top1"] for row in record["results"])
    assert before < after < whole


def test_the_text_on_questions_is_what_the_sweep_measured():
    results = pl.read_parquet(ROOT / "docs" / "results" / "vqa.parquet")
    assert set(results["images"]) == {300}, "the text says how many questions"
    quarter = {row["method"]: row for row in results.filter(pl.col("label") == "keep=0.25").iter_rows(named=True)}
    whole = results.filter(pl.col("method") == "unpatched")["exact_match"][0]
    lost = {name: f"{whole - row['exact_match']:.1f}" for name, row in quarter.items()}
    text = " ".join(PAGE.split())
    assert f"lose {lost['random_visual']} points, FoPru {lost['fopru']}, VTC-CLS {lost['vtc_cls']};" in text
    for percent in (95, 90):
        assert f"{100 * (percent / 100 * (1 - percent / 100) / 300) ** 0.5:.1f} at {percent} %" in text.replace(
            " points", ""
        )
    fopru, vtc, fastv = (quarter[name] for name in ("fopru", "vtc_cls", "fastv"))
    speed = f"{vtc['prefill_speedup']:.2f} times as fast for VTC-CLS and {fopru['prefill_speedup']:.2f} times for FoPru"
    shares = [row["prefill_speedup"] / row["ideal_speedup"] for row in (vtc, fopru, fastv)]
    assert f"{speed}, against an ideal of {vtc['ideal_speedup']:.2f}: {shares[0]:.2f} and {shares[1]:.2f} of it" in text
    assert f"reaches {shares[2]:.2f} of its {fastv['ideal_speedup']:.2f}" in text
    part = [100 * row["reduction_ms"] / row["prefill_ms_unpatched"] for row in (vtc, fopru)]
    assert f"{part[0]:.1f} % of the unpatched prefill for VTC-CLS and {part[1]:.1f} % for FoPru" in text


def test_the_text_on_trained_thresholds_is_what_was_measured():
    found = json.loads((ROOT / "docs" / "results" / "learn_atp.json").read_text())
    text = " ".join(PAGE.split())
    assert (found["questions"], found["steps"], found["batch_size"], found["target"]) == (500, 200, 16, 64)
    assert f"the modules {found['kept']:.1f} tokens are left on average, where 64 were asked for" in text
    assert found["exact_match"] == found["exact_match_unpatched"], "as many answers are right as before"
    fastv = pl.read_parquet(ROOT / "docs" / "results" / "vqa.parquet").filter(
        (pl.col("method") == "fastv") & (pl.col("label") == "keep=0.25")
    )
    assert fastv["agreement"].to_list() == [100.0], "FastV changes no answer"


def test_the_text_on_tiles_is_what_the_sweep_measured():
    results = pl.read_parquet(ROOT / "docs" / "results" / "vqa_next.parquet")
    assert set(results["images"]) == {200}, "the text says how many questions"
    found = {(row["method"], row["label"]): row["exact_match"] for row in results.iter_rows(named=True)}
    text = " ".join(PAGE.split())
    whole = found["unpatched", ""]
    assert f"Unpatched it answers {whole:.1f} % of them" in text
    kept = {key: value for key, value in found.items() if "positions=original" in key[1] and key[0] != "hired"}
    assert len(kept) == 30, "five methods at six strengths"
    assert min(kept.values()) >= whole - 1, "within a point"
    vtc, chance = (found[name, "keep=0.25"] for name in ("vtc_cls", "random_visual"))
    assert f"VTC-CLS answers {vtc:.1f} % at a quarter and chance {chance:.1f} %" in text
    near = [found["random_visual", key[1]] - value for key, value in kept.items()]
    assert min(near) >= -1, "chance does as well as any method"
    hired = found["hired", "newlines=unpadded, positions=original, keep=0.25"]
    assert f"and some tiles nothing: {hired:.1f} % at a quarter" in text
    assert f"behind the second layer, answers {found['fastv', 'keep=0.25']:.1f} %" in text
    record = json.loads((ROOT / "models" / "llava-next-shapes" / "accuracy.json").read_text())
    fine, coarse = record["test_exact_match"], record["coarse_exact_match"]
    assert f"the whole test set falls from {fine:.2f} to {coarse:.2f} %" in text


def test_the_text_on_retrieval_is_what_the_sweep_measured():
    results = pl.read_parquet(ROOT / "docs" / "results" / "retrieval.parquet")
    text = " ".join(PAGE.split())
    assert set(results["images"]) == {500}, "the text says how many pictures"
    assert results["seconds"].sum() < 240, "the sweep says that it takes less than four minutes"
    whole = results.filter(pl.col("method") == "unpatched")["text_to_image_r1"][0]
    least = {row["method"]: row for row in results.filter(pl.col("label") == "budget=45%").iter_rows(named=True)}
    lost = {name: whole - row["text_to_image_r1"] for name, row in least.items()}
    assert f"PiToMe loses {lost['pitome']:.1f} points of text to image R@1, ToMe {lost['tome']:.1f}, " in text
    assert f"and a random choice {lost['random']:.1f}; EViT gains {-lost['evit']:.1f}." in text
    kept = [f"{least[name]['agreement']:.1f} %" for name in ("pitome", "tome")]
    assert f"leaves {kept[0]} of the choices as they were, ToMe {kept[1]}." in text


def test_the_text_on_tokens_is_what_was_measured():
    rows = pl.read_parquet(ROOT / "docs" / "results" / "rate_distortion.parquet").sort("model", "bits")
    text = " ".join(PAGE.split())
    assert set(rows["images"]) == {500}
    curves = {model: list(part["psnr"]) for (model,), part in rows.group_by("model", maintain_order=True)}
    assert all(b > a for curve in curves.values() for a, b in itertools.pairwise(curve))
    gains = []
    for name in ("flextok-fmnist", "flextok-shapes"):
        record = json.loads((ROOT / "models" / name / "curve.json").read_text())
        known = list(record["one_step_psnr"].values())
        gains.append((record["mean_image_psnr"], known[0], known[-1]))
    (mean, first, last), (mean_s, first_s, last_s) = gains
    assert f"{mean:.1f} dB for Fashion-MNIST and {mean_s:.1f} dB for shapes" in text
    assert f"one token is {first - mean:.1f} and {first_s - mean_s:.1f} dB above it" in text
    assert f"all of them {last - mean:.1f} and {last_s - mean_s:.1f} dB" in text
    control, ours = curves["flextok-fmnist-unordered"], curves["flextok-fmnist"]
    assert f"With all tokens the control is {control[-1] - ours[-1]:.1f} dB better" in text
    assert control[0] < mean
    probes = rows.group_by("data", maintain_order=True).first()["probe_top1_originals"]
    assert f"{probes[0]:.1f} % of the classes of Fashion-MNIST and {probes[1]:.1f} % of the numbers of shapes" in text
    known_models = ("flextok-fmnist", "flextok-shapes")
    away = [row["psnr"] - row["psnr_drawn"] for row in rows.iter_rows(named=True) if row["model"] in known_models]
    assert f"{min(away):.1f} to {max(away):.1f} dB further" in text


def test_the_text_on_karl_is_what_was_measured():
    rows = pl.read_parquet(ROOT / "docs" / "results" / "rate_distortion.parquet")
    rows = rows.filter(model="karl-shapes").sort("bits")
    asked, reached = [0.12, 0.1, 0.08, 0.07, 0.06, 0.05], list(rows["pixel_error"])
    assert list(rows["label"]) == [*(f"quality={error:g}" for error in asked[:-1]), ""]
    *first, last = (f"{error:.3f}" for error in reached)
    off = max(abs(error / request - 1) for error, request in zip(reached, asked, strict=True))
    flextok = pl.read_parquet(ROOT / "docs" / "results" / "rate_distortion.parquet").filter(model="flextok-shapes")
    flextok = flextok.sort("bits")
    near = np.interp(rows["bits"], flextok["bits"], flextok["psnr"]) > rows["psnr"].to_numpy()
    assert list(near) == [bits >= 64 for bits in rows["bits"]]
    assert f"it makes {', '.join(first)} and {last} on average, at most {100 * off:.0f} % off" in " ".join(PAGE.split())


@pytest.mark.parametrize("name", ["flextok-fmnist", "flextok-shapes"])
def test_the_text_on_the_speed_of_tokenizers_is_what_was_measured(name):
    record = json.loads((ROOT / "docs" / "results" / f"bench_{name.replace('-', '_')}.json").read_text())
    encode, decode = (f"{record[part]['over_blocks']:.2f}" for part in ("encode", "decode"))
    said = {
        "flextok-fmnist": f"takes {encode} times and decoding {decode} times as long for `flextok-fmnist`",
        "flextok-shapes": f"{encode} and {decode} times for `flextok-shapes`",
    }
    assert said[name] in " ".join(PAGE.split())
    assert record["threads"] == 1


def test_on_the_cpu_the_mask_is_the_cheapest_way_to_proportional_attention():
    rows = json.loads((ROOT / "docs" / "results" / "proportional_cpu.json").read_text())["results"]
    for dtype, tokens in {(row["dtype"], row["tokens"]) for row in rows}:
        ways = {row["way"]: row["over_plain"] for row in rows if (row["dtype"], row["tokens"]) == (dtype, tokens)}
        assert min(ways, key=ways.__getitem__) == "mask"


def test_the_law_of_zerotprune_cannot_meet_the_budget_that_the_page_says_it_cannot():
    assert "a budget of 40 %" in PAGE
    with pytest.raises(tokred.BudgetError, match="out of reach"):
        tokred.patch(load_model("vit-fmnist"), tokred.ZeroTPrune(budget="40%"))


def test_rows_of_a_gpu_are_called_unmeasured_until_there_is_a_file():
    section = PAGE.split("## Kernels on a GPU")[1]
    measured = list((ROOT / "docs" / "results").glob("gpu*.json"))
    assert ("Not measured so far" in section) == (not measured)
    assert measured or not re.search(r"\d(x|\s?ms|\s?%)", section), "a number without a file"
