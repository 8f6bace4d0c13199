"""Every number of the README stands in a committed results file."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_accuracy_of_the_embedded_models_is_the_measured_one():
    quoted = re.findall(r"`(vit-fmnist[a-z-]*)`[^`]*?, (\d\d\.\d\d) %", README)
    assert {name for name, _ in quoted} == {"vit-fmnist", "vit-fmnist-reg"}
    for name, top1 in quoted:
        record = json.loads((ROOT / "models" / name / "accuracy.json").read_text())
        assert f"{100 * record['test_correct'] / record['test_total']:.2f}" == top1


def test_the_coverage_is_the_recorded_one():
    record = json.loads((ROOT / "docs" / "coverage.json").read_text())
    [(names, version)] = re.findall(r"All (\d+) names of timm (\d+\.\d+\.\d+) pass", README.replace("\n", " "))
    assert (int(names), version) == (record["pass"], record["timm"])
    assert record["pass"] == record["names"]
