"""What mkdocs does here besides turning pages into HTML: it makes pages, and brings along the files that pages link to.

Made are the pages of methods (method_pages.py) and of tutorials (tutorial_pages.py). A link that leaves docs/ (to a
source, a config, a model card) leads to a page that shows this file, so that the site is complete without a network.
"""

import os
import re
from pathlib import Path
from typing import Any

import method_curves
import method_pages
import tutorial_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tokred.methods import methods

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SHOWN = "source"  # the folder of the site for files from outside of docs/
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?\)")
_FOREIGN = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?:)?//[^>]*>")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enter the pages that are made into the navigation."""
    nav: list[dict[str, Any]] = config.nav  # pyright: ignore[reportAssignmentType]
    for entry in nav:
        if "Methods" in entry:
            entry["Methods"] += [
                {title: [{name: f"methods/{name}.md"} for name in methods(place)]}  # pyright: ignore[reportArgumentType]
                for place, title in method_pages.GROUPS.items()
            ]
        if "Tutorials" in entry:
            entry["Tutorials"] = [f"tutorials/{path.stem}.md" for path in tutorial_pages.tutorials()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages, and find what they link to."""
    for name in methods(None):
        _add(files, config, f"methods/{name}.md", method_pages.method_page(name))
        for file, _ in method_curves.measured(name):
            picture = method_curves.picture(file, name)
            _add(files, config, f"methods/{method_pages.picture_name(name, file)}", picture)
    for path in tutorial_pages.tutorials():
        _add(files, config, f"tutorials/{path.stem}.md", tutorial_pages.tutorial_page(path))
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for path in _outside(page.content_string, _place(page.src_uri)):
            if files.get_file_from_path(_shown_at(path)) is None:
                waiting.append(_add(files, config, _shown_at(path), _shown(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the page that shows the file."""
    uri = page.file.src_uri

    def lead(link: re.Match[str]) -> str:
        path = _target(link[2], _place(uri))
        if path is None or (_is_in_site(path) and not _is_shown(uri)):
            return link[0]
        at = path.relative_to(DOCS).as_posix() if _is_in_site(path) else _shown_at(path)
        tutorial = f"tutorials/{path.stem}.md"
        if path in tutorial_pages.tutorials() and uri != tutorial:  # only its own page leads to the file
            at = tutorial
        return f"{link[1]}{os.path.relpath(at, Path(uri).parent)}{link[3] or ''})"

    return _LINK.sub(lead, markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    if found := _FOREIGN.search(re.sub(r'<link rel="canonical"[^>]*>', "", output)):
        raise PluginError(f"{page.file.src_uri} fetches from the network: {found[0]}")
    return output


def _add(files: Files, config: MkDocsConfig, uri: str, content: str | bytes) -> File:
    file = File.generated(config, uri, content=content)
    files.append(file)
    return file


def _place(uri: str) -> Path:
    """The folder in the repository that links of a page are relative to."""
    return ROOT.joinpath(*Path(uri).parts[1:-1]) if _is_shown(uri) else DOCS.joinpath(uri).parent


def _is_shown(uri: str) -> bool:
    return Path(uri).parts[0] == SHOWN


def _target(link: str, folder: Path) -> Path | None:
    """The file of the repository that a link means; the model card for a folder."""
    if "://" in link or link.startswith(("#", "mailto:")):
        return None
    path = Path(os.path.normpath(folder / link))
    if path.is_dir():
        path /= "README.md"
    return path if path.is_file() else None


def _is_in_site(path: Path) -> bool:
    return path.is_relative_to(DOCS) and path.suffix != ".py"


def _outside(markdown: str, folder: Path) -> list[Path]:
    targets = [_target(link[1], folder) for link in _LINK.findall(markdown)]
    return [path for path in targets if path is not None and not _is_in_site(path)]


def _shown_at(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"{SHOWN}/{name}" if path.suffix == ".md" else f"{SHOWN}/{name}.md"


def _shown(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    fence = "`" * 4
    return f"# {path.relative_to(ROOT)}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
