"""A page for every registered method, from its docstring, its fields, docs/methods.md and what was measured."""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from docstrings import attributes, description
from method_curves import measured, table

from tokred.methods import methods
from tokred.methods.base import Method
from tokred.methods.registry import AnyMethod

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GROUPS = {
    "encoder": "Inside an encoder",
    "features": "On the features of images",
    "decoder": "Between the layers of the language model",
}
"""Headings of the places where methods act, in the order of the navigation."""
_DEVIATIONS = "| method | point | paper | released code | here |"


def method_page(name: str) -> str:
    """The Markdown of a method's page, as it would stand in docs/methods/."""
    method = methods(None)[name]
    return "\n\n".join(
        [
            f"# {method.__name__}",
            description(method),
            _facts(name, method),
            "## Use\n\n" + _use(method),
            "## Options\n\n" + _options(method),
            "## Where paper and released code differ\n\n" + _deviations(name, method),
            "## Measured\n\n" + _measured(name),
        ]
    )


def listed(name: str) -> tuple[str, str, str]:
    """Paper, place and what is trained, as the table of docs/methods.md says it."""
    table = (DOCS / "methods.md").read_text().split(_DEVIATIONS)[0]
    [row] = re.findall(rf"^\| `{name}` \| (.*) \|$", table, flags=re.MULTILINE)
    paper, place, trained, _ = row.split(" | ")
    return paper, place, trained


def deviations() -> list[list[str]]:
    """The rows of the table of deviations in docs/methods.md."""
    rows = (DOCS / "methods.md").read_text().split(_DEVIATIONS)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def is_about(row: list[str], name: str, method: type[AnyMethod]) -> bool:
    """Whether a row of that table names the method: by its name, its class, or as its paper writes it."""
    known = {_letters(name), _letters(method.__name__)}
    return any(_letters(said) in known for said in row[0].split(", "))


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _facts(name: str, method: Any) -> str:
    paper, place, trained = listed(name)
    paper = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    file = Path(*method.__module__.split(".")).with_suffix(".py")
    facts = {
        "name": f"`{name}`",
        "class": f"`{method.__module__}.{method.__name__}`",
        "paper": paper,
        "acts": place,
        "trained": trained,
    }
    # CLCA needs what the method that it stands around needs
    if issubclass(method, Method) and isinstance(method.needs, frozenset):
        facts |= {
            "looks at": ", ".join(f"`{signal}`" for signal in sorted(method.needs)) or "the tokens alone",
            "counts of its schedule": ", ".join(f"`{track}`" for track in method.tracks),
        }
    facts["file"] = f"[{file}](../../{file})"
    head, *rows = (f"| {key} | {value} |" for key, value in facts.items())
    return "\n".join([head, "|---|---|", *rows])


def _use(method: Any) -> str:
    if method.place == "encoder":
        inner = "tokred.EViT()" if any(f.name == "inner" for f in fields(method)) else ""
        return f"```python\ntokred.patch(model, tokred.{method.__name__}({inner}))  # any supported encoder\n```"
    return (
        'Of a multimodal model, such as `model, processor = tokred.load_multimodal("llava-shapes")`:\n\n'
        f"```python\ntokred.patch(model, tokred.{method.__name__}())\n```"
    )


def _options(method: Any) -> str:
    said = attributes(method)
    lines = [
        f"| `{field.name}` | `{_type(field)}` | {_default(field)} | {said.get(field.name, '')} |"
        for field in fields(method)
    ]
    return "| option | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(lines)


def _type(field: Field[Any]) -> str:
    return str(field.type)


def _default(field: Field[Any]) -> str:
    return "(needed)" if field.default is MISSING else f"`{field.default!r}`"


def _deviations(name: str, method: Any) -> str:
    rows = [row[1:] for row in deviations() if is_about(row, name, method)]
    if not rows:
        return "Nothing is known to differ. What holds for all methods stands [here](../methods.md)."
    head = "| point | paper | released code | here |\n|---|---|---|---|\n"
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _measured(name: str) -> str:
    parts = [
        f"From [results/{file}](../results/{file}); how it was measured: [benchmarks](../benchmarks.md).\n\n"
        f"![Quality over GMACs]({picture_name(name, file)})\n\n{table(points)}"
        for file, points in measured(name)
    ]
    return "\n\n".join(parts) or "Not measured on the models that ship."


def picture_name(name: str, file: str) -> str:
    """The file of the picture of a method's points in a file of results."""
    return f"{name}-{Path(file).stem}.svg"
