"""Writes docs/sweep.schema.json, by which editors check and complete sweep files. Run it as it is."""

import json
from pathlib import Path

from tokred.sweep import SweepSpec

PATH = Path(__file__).parent / "sweep.schema.json"


def schema() -> str:
    """Return the JSON schema of a sweep file."""
    return json.dumps(SweepSpec.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema())
