"""Every encoder of pictures in the installed transformers whose attention goes through its shared interface.

The source of the library is read, not run: importing all of its models would take minutes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import transformers

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
# arguments of a forward that bring pictures, or patches cut out of them
PICTURES = {"pixel_values", "pixel_values_videos", "flattened_patches", "patch_embeds", "image"}
WORDS = {"input_ids", "inputs_embeds", "encoder_hidden_states"}
MODELS = Path(transformers.__file__).parent / "models"


@dataclass(frozen=True)
class Entry:
    """Model classes that share a config, and with it a kind of encoder.

    Attributes:
        model_type: of the config; the name of its class if it has none.
        config: class of the config.
        classes: models with this config that take pictures and attend themselves.
        folder: where they are defined, under ``transformers/models``.
    """

    model_type: str
    config: str
    classes: tuple[str, ...]
    folder: str


class ModelFile:
    """The classes of one modelling file."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.source = source.splitlines()
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        # names that stand for classes of the file, such as tables of attention classes
        self.tables = {
            node.targets[0].id: self.words(node.value) & set(self.classes)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }

    def entries(self) -> Iterator[tuple[str, str]]:
        """Models that belong into the census, with their configs."""
        for name in self.classes:
            config = self.config(name)
            if config and self.is_encoder(name):
                yield name, config

    def is_encoder(self, name: str) -> bool:
        """Whether it takes pictures and attends, and is no model around another encoder.

        What attends may be a model with a config of its own, if that takes no words.
        """
        if not (self.is_model(name) and self.takes_pictures(name)):
            return False
        parts, others = self.parts(name)
        if any(self.is_encoder(other) for other in others):
            return False
        for other in others:
            parts |= set() if "input_ids" in self.arguments(other) else self.parts(other)[0]
        return any(self.uses_interface(part) for part in parts)

    def is_model(self, name: str) -> bool:
        """Whether it is a ``PreTrainedModel``."""
        names = {base.id for c in self.bases(name) for base in self.classes[c].bases if isinstance(base, ast.Name)}
        return any(n.endswith(("PreTrainedModel", "PretrainedModel")) for n in names)

    def takes_pictures(self, name: str) -> bool:
        """Whether its forward takes pictures, by the name of the argument or of its main input."""
        arguments = self.arguments(name)
        if arguments & PICTURES or {"hidden_states", "grid_thw"} <= arguments:
            return True
        main = next((self.words(line) for line in self.lines(name, "main_input_name")), set())
        return bool(main & PICTURES) and not arguments & WORDS

    def parts(self, name: str) -> tuple[set[str], set[str]]:
        """Classes that it builds, and these build, for its own config; and models with configs of their own."""
        own, others, todo = set(), set(), [name]
        while todo:
            part = todo.pop()
            if part in own | others:
                continue
            if part != name and self.is_model(part) and self.config(part) != self.config(name):
                others.add(part)
                continue
            own.add(part)
            for init in self.methods(part, "__init__"):
                for word in set().union(*(self.words(line) for line in init.body)):
                    todo += [word] if word in self.classes else self.tables.get(word, set())
        return own, others

    def config(self, name: str) -> str | None:
        """Class of the config: said in the class or by the argument of ``__init__``, or else in a base."""
        for cls in self.bases(name):
            said = [*self.lines(cls, "config", inherited=False), *self.lines(cls, "config_class", inherited=False)]
            for init in self.methods(cls, "__init__", inherited=False):
                said += [a.annotation for a in init.args.args if a.arg == "config" and a.annotation is not None]
            if said:
                return next((word for word in sorted(self.words(said[0])) if word.endswith("Config")), None)
        return None

    def uses_interface(self, name: str) -> bool:
        """Whether the class, or one that it inherits from, takes attention functions from the interface."""
        return any(INTERFACE in self.words(self.classes[cls]) for cls in self.bases(name))

    def words(self, node: ast.stmt | ast.expr) -> set[str]:
        """Words on the lines of a piece of code (which is faster than to walk through its tree)."""
        return set(re.findall(r"\w+", "\n".join(self.source[node.lineno - 1 : node.end_lineno])))

    def arguments(self, name: str) -> set[str]:
        """What its forward takes."""
        forward = next(self.methods(name, "forward"), None)
        return set() if forward is None else {a.arg for a in [*forward.args.args, *forward.args.kwonlyargs]}

    def bases(self, name: str) -> list[str]:
        """The class and those of this file that it inherits from, the nearest first."""
        found = [name]
        for base in self.classes[name].bases:
            if isinstance(base, ast.Name) and base.id in self.classes:
                found += self.bases(base.id)
        return found

    def methods(self, name: str, method: str, inherited: bool = True) -> Iterator[ast.FunctionDef]:
        """A method of the class, and those that it overrides."""
        for cls in self.bases(name) if inherited else [name]:
            for node in self.classes[cls].body:
                if isinstance(node, ast.FunctionDef) and node.name == method:
                    yield node

    def lines(self, name: str, attribute: str, inherited: bool = True) -> Iterator[ast.expr]:
        """What is assigned to an attribute of the class, or is its type."""
        for cls in self.bases(name) if inherited else [name]:
            for node in self.classes[cls].body:
                if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == attribute:
                    yield node.value or node.annotation
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == attribute:
                    yield node.value


@cache
def census() -> list[Entry]:
    """All encoders, by config."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if INTERFACE in text and any(word in text for word in [*PICTURES, "grid_thw"]):
            for name, config in ModelFile(text).entries():
                found.setdefault((config, path.parent.name), []).append(name)
    types = {folder: _model_types(folder) for _, folder in found}
    return [
        Entry(types[folder].get(config, config), config, tuple(names), folder)
        for (config, folder), names in found.items()
    ]


def _model_types(folder: str) -> dict[str, str]:
    """``model_type`` of the classes of configs in a folder."""
    said = re.compile(r'^class (\w+)|^    model_type\b.*= "(.+)"', re.MULTILINE)
    found, name = {}, ""
    for path in MODELS.glob(f"{folder}/configuration_*.py"):
        for cls, model_type in said.findall(path.read_text(encoding="utf-8")):
            name = cls or name
            if model_type:
                found[name] = model_type
    return found
