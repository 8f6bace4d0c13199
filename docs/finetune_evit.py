"""Writes docs/results/finetune_evit.json: EViT in vit-fmnist before and after fine-tuning, on all test images.

tokred train configs/train/vit_fmnist_evit.yaml
python docs/finetune_evit.py runs/train/vit-fmnist-evit/model
"""

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

import tokred
from tokred.assets import load_model
from tokred.bench.machine import device_name, versions
from tokred.data import Batches, load_dataset, transform_for
from tokred.evaluate.classification import top1

METHOD = tokred.EViT(keep=0.5)
RESULTS = Path(__file__).parent / "results" / "finetune_evit.json"


def measure(name: str, model: nn.Module, method: tokred.Method) -> dict[str, Any]:
    """What a model reaches with a method inside."""
    data = load_dataset("fashion-mnist", "test", transform_for(model))
    with tokred.patch(model, method) as handle:
        found = top1(model, Batches(data, 100))
        return {"model": name, "gmacs": handle.cost.gmacs, "top1": found.top1, "images": found.total}


def main(tuned: str) -> None:
    """Measure the shipped model without and with EViT, and the fine-tuned one with it."""
    shipped = load_model("vit-fmnist")
    rows = [
        measure("vit-fmnist", shipped, METHOD.zero()),
        measure("vit-fmnist, EViT", shipped, METHOD),
        measure("fine-tuned, EViT", load_model(tuned), METHOD),
    ]
    record = {"device": device_name("cpu"), "dtype": "float32", "versions": versions(), "results": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
