"""The benchmark for GPUs runs from its command, without a GPU and with torch, triton and timm alone."""

import json
import os
import subprocess
import sys

import pytest

from tokred.bench import gpu, gpu_rows
from tokred.ops.dispatch import KERNELS

FORBIDDEN = ("open_clip", "transformers", "pydantic", "typer", "rich", "pyarrow", "polars", "plotly", "optuna")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({FORBIDDEN!r}))
from tokred.bench.gpu import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_dry_run_checks_times_and_writes_with_few_libraries(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert len(report["checks"]) >= 6
    assert not any(report["checks"].values())
    assert {row["name"] for row in report["rows"]} == {row.name for row in gpu_rows.rows(dry=True)}
    assert not [row for row in report["rows"] if row.get("error") or row["errors"]]
    page = (tmp_path / "gpu.md").read_text()
    assert "A dry run" in page
    assert all(row["name"] in page for row in report["rows"])


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "there is no GPU here" in capsys.readouterr().err


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    def fail(device):
        raise AssertionError("best_match[1]: 3 of 4 differ")

    monkeypatch.setattr(gpu, "all_checks", lambda: [gpu_rows_check("best_match (1, 2)", fail)])
    monkeypatch.setattr(gpu, "copy_rate", lambda clock, dry: 1e9)
    monkeypatch.setattr(gpu, "product_rate", lambda clock, dtype, dry: 1e9)
    report = gpu.run(gpu.torch.device("cpu"), tmp_path, dry=True, only="best_match")
    assert report.wrong == {"best_match (1, 2)": "AssertionError: best_match[1]: 3 of 4 differ"}
    assert [row["error"] for row in report.rows] == ["not timed: best_match is wrong"]
    assert "- wrong: best_match (1, 2)" in (tmp_path / "gpu.md").read_text()


def gpu_rows_check(name, run):
    from tokred.bench.kernel_checks import Check

    return Check(name, run)


def test_the_bound_is_the_longer_of_copying_and_computing():
    rates = {"copy bytes/s": 1e9, "bfloat16 FLOP/s": 1e12}
    row = gpu_rows.Row("a", dict, flops=2e9, bytes=1e6)
    assert gpu.bound_milliseconds(row, rates) == pytest.approx(2.0)
    assert gpu.bound_milliseconds(gpu_rows.Row("b", dict, flops=2e6, bytes=1e7), rates) == pytest.approx(10.0)
    assert gpu.bound_milliseconds(gpu_rows.Row("c", dict), rates) is None


def test_the_names_of_rows_are_unique_and_their_kernels_known():
    for dry in (True, False):
        rows = [*gpu_rows.rows(dry), *gpu_rows.tuning(dry)]
        assert len({row.name for row in rows}) == len(rows)
        assert all(row.kernels <= KERNELS.keys() for row in rows)
