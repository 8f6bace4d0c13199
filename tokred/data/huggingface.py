"""Labelled pictures of the library ``datasets``: of the hub, from Parquet files, or from what it saved to a disk."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tokred.data.pictures import Unreadable, open_picture
from tokred.data.tensors import Transform
from tokred.errors import DataError
from tokred.extra import need

PREFIX = "hf:"
_SAVED = ("dataset_dict.json", "dataset_info.json")  # what save_to_disk writes
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "cls")  # columns that do not say by their type what they are


def is_huggingface(name: str, split: str) -> bool:
    """Whether a name is of the hub (``hf:owner/name``), of a Parquet file, or of a folder with such files."""
    path = Path(name).expanduser()
    return (
        name.startswith(PREFIX)
        or path.suffix == ".parquet"
        or any((path / file).is_file() for file in _SAVED)
        or any(True for part in ("", "data", split) for _ in (path / part).glob("*.parquet"))
    )


class HuggingFaceImages(Dataset[Any]):
    """Rows with a picture and a label, as (picture, label); pictures are decoded when they are asked for.

    A picture that cannot be decoded comes out as :class:`~tokred.data.Unreadable`.

    Args:
        name: ``hf:owner/name`` or ``hf:owner/name:subset`` of the hub, a Parquet file, which is of any split, a folder
            with such files whose names or folders begin with the split, or a folder of ``Dataset.save_to_disk``.
        split: which part.
        transform: from a PIL picture in RGB to a tensor.
        strict: refuse a single file, which has no splits.

    Raises:
        DataError: no such data or split, or no column with pictures or labels.
        TokredError: ``datasets`` is not installed.
    """

    def __init__(self, name: str, split: str, transform: Transform | None = None, *, strict: bool = False):
        self.name, self.split, self.transform = name, split, transform
        library = need("datasets", extra="data", purpose="Parquet files and data sets of the hub need")
        rows = _load(library, name, split, strict)
        types = rows.features
        self._image = _column(name, types, library.Image, _IMAGES, "pictures")
        self._label = _column(name, types, library.ClassLabel, _LABELS, "labels")
        self._rows = rows.select_columns([self._image, self._label]).cast_column(
            self._image, library.Image(decode=False)
        )
        label = types[self._label]
        if isinstance(label, library.ClassLabel):
            self.classes = tuple(label.names)
        elif label.dtype == "string":
            self.classes = tuple(sorted(rows.unique(self._label)))
        else:
            self.classes = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int] | Unreadable:
        row = self._rows[index]
        found, label = row[self._image], row[self._label]
        place = f"{self.name}, {self.split} {index}"
        if label is None or label == -1:
            raise DataError(f"{place}: has no label. Test splits often hide theirs; try split: validation.")
        if found is None:
            return Unreadable(place, "no picture")
        image = open_picture(found["bytes"] if found["bytes"] is not None else Path(found["path"]), place)
        if isinstance(image, Unreadable):
            return image
        label = self.classes.index(label) if isinstance(label, str) and self.classes else int(label)
        return (image if self.transform is None else self.transform(image)), label


def _load(library: Any, name: str, split: str, strict: bool) -> Any:
    path = Path(name).expanduser()
    if strict and path.is_file():
        raise DataError(f"{name} is one file and has no split {split!r}. Name the folder that holds all splits.")
    try:
        if any((path / file).is_file() for file in _SAVED):
            saved = library.load_from_disk(str(path))
            return saved[split] if isinstance(saved, dict) else _only(saved, name, split, strict)
        if path.is_file():
            return library.load_dataset("parquet", data_files={split: str(path)}, split=split)
        if not path.exists() and not name.startswith(PREFIX):
            raise FileNotFoundError("there is no such file")
        where = name.removeprefix(PREFIX).split(":") if name.startswith(PREFIX) else [str(path)]
        return library.load_dataset(*where, split=split)
    except KeyError as error:
        raise DataError(f"{name} has no split {split!r}. It has: {', '.join(saved)}.") from error
    except Exception as error:  # files that are broken, the hub's own, its client's: they share no base class
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: the split {split!r} cannot be read ({type(error).__name__}: {reason}).") from error


def _only(rows: Any, name: str, split: str, strict: bool) -> Any:
    """Rows that were saved by themselves; they may know their split."""
    own = None if rows.split is None else str(rows.split)
    if own == split or not (own or strict):
        return rows
    raise DataError(f"{name} has no split {split!r}. It has: {own or 'none'}.")


def _column(name: str, types: Any, kind: type, known: tuple[str, ...], what: str) -> str:
    """The column of a type; where none is, one with a known name."""
    found = [column for column, of in types.items() if isinstance(of, kind)]
    found = [*(column for column in known if column in found), *found, *(column for column in known if column in types)]
    if not found:
        raise DataError(f"{name}: no column with {what} among {', '.join(types)}. Call it {known[0]!r}.")
    return found[0]
