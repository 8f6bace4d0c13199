"""``python -m tests.adapters.coverage --out docs/coverage.json``: on how many of timm's plain ViTs a patch is right."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import timm
import torch

import tokred

from . import zoo
from .promises import keeps_promises, survivors_are_exact

PASS = "pass"


def examine(name: str) -> str:
    """``"pass"``, or the reason why not."""
    try:
        model = zoo.build(name)
        x = zoo.images(model)
        with torch.no_grad():
            model(x)
    except Exception as error:
        return f"timm cannot run it: {type(error).__name__}: {error}"
    try:
        keeps_promises(model, tokred.ToMe(r=4), x)
        survivors_are_exact(model, x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return PASS


def main() -> None:
    """Examine all names and write a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.json"))
    out = parser.parse_args().out
    names = zoo.names()
    results = {}
    for number, name in enumerate(names, start=1):
        results[name] = examine(name)
        sys.stderr.write(f"\r{number} of {len(names)}  {name:60}")
    passed = sum(result == PASS for result in results.values())
    report = {
        "names": len(names),
        "pass": passed,
        "timm": timm.__version__,
        "torch": torch.__version__,
        "tokred": tokred.__version__,
        "date": date.today().isoformat(),
        "checked": "identity with nothing reduced, tokens in every block and MLP with ToMe(r=4), changed output, exact "
        "survivors with TopK, removal bit for bit; three blocks of width 96, random parameters",
        "results": results,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stderr.write(f"\n{passed} of {len(names)} pass; written to {out}\n")


if __name__ == "__main__":
    main()
