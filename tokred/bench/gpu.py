"""``python -m tokred.bench.gpu --out DIR``: whether the kernels are right on this GPU, and then how fast they are.

It needs a checkout, torch, triton and timm, and nothing else; transformers only for its own rows. First every check of
:mod:`tokred.bench.kernel_checks` runs; a kernel that fails is not timed. Then kernels are timed against plain PyTorch
in eager mode and under ``torch.compile``, and against what the device can copy and multiply, both measured; then whole
models. The result is one JSON file and one page with the same numbers. ``--dry-run`` does the same with tiny sizes,
on the CPU in Triton's interpreter, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tokred.bench.gpu_rows import Row, rows, tuning
from tokred.bench.gpu_timing import Clock, copy_rate, product_rate
from tokred.bench.kernel_checks import all_checks
from tokred.ops.dispatch import describe

log = logging.getLogger("tokred.bench.gpu")


@dataclass
class Report:
    """What was found.

    Attributes:
        machine: device, driver, versions.
        rates: bytes copied and floating point operations a second, measured.
        checks: name of every check to what went wrong, empty if nothing.
        rows: what was timed.
    """

    machine: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, str]:
        """The checks that failed."""
        return {name: why for name, why in self.checks.items() if why}


def run(
    device: torch.device, out: Path, *, dry: bool = False, only: str = "", seconds: float = 1e9, tune: bool = False
) -> Report:
    """Check, time, and write ``gpu.json`` and ``gpu.md``; both are written anew after every row.

    Args:
        device: where.
        out: folder.
        dry: tiny sizes.
        only: part of the names of the rows to time; checks always run.
        seconds: begin no further row after this time.
        tune: time other tiles, and nothing else.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    report = Report(machine(device, dry))
    check(device, report, dry)
    clock = Clock(device, dry)
    report.rates["copy bytes/s"] = copy_rate(clock, dry)
    for dtype in ("bfloat16", "float32"):
        report.rates[f"{dtype} FLOP/s"] = product_rate(clock, getattr(torch, dtype), dry)
    save(report, out)
    broken = {name.split()[0] for name in report.wrong}
    for row in tuning(dry) if tune else rows(dry):
        if only not in row.name:
            continue
        if time.monotonic() - started > seconds:
            log.warning("time is up before %s", row.name)
            break
        if broken & row.kernels:
            report.rows.append({"name": row.name, "error": f"not timed: {', '.join(broken & row.kernels)} is wrong"})
        else:
            report.rows.append(measure(row, clock, report.rates))
        log.info("%s", report.rows[-1])
        save(report, out)
    return report


def check(device: torch.device, report: Report, dry: bool) -> None:
    """Run the checks; in a dry run every tenth."""
    for place, one in enumerate(all_checks()):
        if dry and place % 10:
            continue
        try:
            one.run(device)
            report.checks[one.name] = ""
        except Exception as error:  # a kernel that does not even run is a result too
            report.checks[one.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            log.error("%s: %s", one.name, report.checks[one.name])


def measure(row: Row, clock: Clock, rates: dict[str, float]) -> dict[str, Any]:
    """Time one row; what cannot run leaves its error in the place of its time."""
    found: dict[str, Any] = {"name": row.name, "times": {}, "memory": {}, "errors": {}}
    try:
        ways = row.make(clock.device)
    except Exception as error:
        return {"name": row.name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    for name, function in ways.items():
        try:
            found["times"][name] = clock.milliseconds(function)
            found["memory"][name] = clock.peak(function)
        except Exception as error:
            found["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    bound = bound_milliseconds(row, rates)
    if bound is not None:
        found["bound"] = bound
    return found


def bound_milliseconds(row: Row, rates: dict[str, float]) -> float | None:
    """The time that copying its bytes or computing its products takes at least, whichever is longer."""
    if not row.bytes and not row.flops:
        return None
    products = rates.get(f"{row.dtype} FLOP/s", 0.0)
    copying = row.bytes / rates["copy bytes/s"] if rates.get("copy bytes/s") else 0.0
    return 1e3 * max(copying, row.flops / products if products else 0.0)


def machine(device: torch.device, dry: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    import timm
    import triton

    from tokred import __version__

    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": properties.name if properties is not None else f"{platform.machine()} in Triton's interpreter",
        "capability": f"{properties.major}.{properties.minor}" if properties is not None else None,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "tokred": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "kernels": describe(device),
        "dry": dry,
    }


def markdown(report: Report) -> str:
    """The page."""
    facts = report.machine
    lines = [
        "# Kernels on a GPU",
        "",
        f"{facts['device']}, driver {facts['driver']}, CUDA {facts['cuda']}; tokred {facts['tokred']}, torch "
        f"{facts['torch']}, triton {facts['triton']}, timm {facts['timm']}, python {facts['python']}; {facts['date']}.",
        "",
        "; ".join(f"{name} {value:.3g}" for name, value in report.rates.items()) + ", measured.",
        "",
        f"{len(report.checks) - len(report.wrong)} of {len(report.checks)} checks passed.",
    ]
    if facts["dry"]:
        lines[2:2] = ["**A dry run: it shows that the script runs, and nothing about speed.**", ""]
    lines += [f"- wrong: {name}: {why}" for name, why in report.wrong.items()]
    lines += [
        "",
        "Times are medians. The bound is what copying the bytes or computing the products of a row takes at the "
        "measured rates, whichever is longer; its share says how much of that is reached. Memory is the peak on top "
        "of the inputs.",
        "",
        "| what | way | ms | speed-up over the first way | MiB | share of the bound |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report.rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error']} | | | | |")
            continue
        first = next(iter(row["times"].values()), None)
        for way, ms in row["times"].items():
            memory = row["memory"].get(way)
            share = f"{row['bound'] / ms:.2f}" if "bound" in row else ""
            cells = [
                row["name"],
                way,
                f"{ms:.4f}",
                f"{first / ms:.2f}",
                "" if memory is None else f"{memory / 2**20:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} | {share} |")
        lines += [f"| {row['name']} | {way} | {why} | | | |" for way, why in row["errors"].items()]
    return "\n".join(lines) + "\n"


def save(report: Report, out: Path) -> None:
    """Write both files."""
    (out / "gpu.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    (out / "gpu.md").write_text(markdown(report))


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m tokred.bench.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="time only the rows whose name holds this")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further row after this time")
    parser.add_argument("--tune", action="store_true", help="time other sizes of tiles instead")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU, in Triton's interpreter")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if asked.dry_run:
        asked.device = "cpu"
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--dry-run needs TRITON_INTERPRET=1 in the environment")
        os.environ["TOKRED_KERNELS"] = "triton"
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry-run shows that the script runs")
    report = run(
        torch.device(asked.device),
        asked.out,
        dry=asked.dry_run,
        only=asked.only,
        seconds=asked.seconds,
        tune=asked.tune,
    )
    log.info("%s", asked.out / "gpu.md")
    return 1 if report.wrong else 0


def _driver() -> str | None:
    try:
        lines = Path("/proc/driver/nvidia/version").read_text().splitlines()
    except OSError:
        return None
    words = lines[0].split() if lines else []
    return next((word for word in words if word[0].isdigit() and "." in word), None)


if __name__ == "__main__":
    sys.exit(main())
