"""The Sphinx extension that fills in the book: generated parts of pages, figures they borrow, buttons, run times.

`_config.yml` names it, so that `jupyter-book build .` and `make book` give the same pages. A page has a line
`% … goes here` for each generated part. Figures that pages borrow from chapters come from those that were executed;
where none was, a link to the chapter takes the figure's place.
"""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

from genlib.book import claims
from genlib.book.catalogue import catalogue_table, cheat_sheet
from genlib.book.families import pages
from genlib.book.ledger import ledger
from genlib.book.networks import RECORD
from genlib.book.reference import reference
from genlib.book.repository import chapters
from genlib.book.scoreboard import draw_effects, headline, scoreboard
from genlib.book.simulations import simulations
from genlib.book.speed import draw_speed, memory_table, speed_table, timings
from genlib.book.times import run_times, times_table

__all__ = ["GENERATED", "MARKER", "REFERENCE", "filled", "setup", "write_figures"]

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"^% (.+) goes here$", re.MULTILINE)
REFERENCE = "the reference of "
FIGURE = re.compile(r"^```\{figure\} figures/(\w+)\.\*\n.*?^```$", re.MULTILINE | re.DOTALL)
SUFFIXES = {"image/svg+xml": ".svg", "image/png": ".png"}
TIMES_LINK = "[execution times](execution_times.md)"
REPORT = '<span class="report">Open an issue</span>'


def _ledger(root: Path) -> pd.DataFrame:
    return ledger(claims.records(root / "chapters/claims"), claims.records(root / "chapters/claims/fresh"))


def _titles(root: Path) -> dict[str, str]:
    return {path.stem: _cells(path)[0].source.splitlines()[0].lstrip("# ") for path in chapters(root)}


GENERATED: dict[str, Callable[[Path], dict[str, str]]] = {
    "index": lambda root: {"the count of claims": headline(_ledger(root))},
    "scoreboard": lambda root: scoreboard(_titles(root), _ledger(root)),
    "criteria_simulated": lambda root: simulations(_ledger(root)),
    "execution_times": lambda root: {"the table of execution times": times_table(root)},
    "catalogue": lambda root: {"the catalogue": catalogue_table()},
    "cheat_sheet": lambda root: {"the cheat sheet": cheat_sheet(ROOT / "chapters")},
    "networks_that_people_have": lambda root: pages(json.loads(RECORD.read_text("utf-8"))),
    "how_fast": lambda root: {
        "the table of speed": speed_table(timings()),
        "the table of memory": memory_table(timings()["memory"]),
    },
}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", _set_buttons)
    app.connect("builder-inited", lambda app: write_figures(Path(app.srcdir)))
    app.connect("env-get-outdated", lambda app, *_: list(_to_fill(app)))
    app.connect("source-read", _fill)
    app.connect("missing-reference", _refer_to_chapter)
    return {"parallel_read_safe": True}


def filled(root: Path, page: str, text: str) -> str:
    """The source `text` of a page of chapters/ with its generated parts. ValueError: a marker of no known part."""
    if (path := root / f"chapters/{page}.ipynb") in chapters(root):
        return text.replace(TIMES_LINK, run_times(path))
    wanted = MARKER.findall(text)
    parts = {what: reference(what.removeprefix(REFERENCE)) for what in wanted if what.startswith(REFERENCE)}
    if set(wanted) - set(parts):
        parts |= GENERATED.get(page, lambda root: {})(root)
    if unknown := set(wanted) - set(parts):
        raise ValueError(f"chapters/{page}.md: nothing is generated as {', '.join(map(repr, sorted(unknown)))}")
    text = MARKER.sub(lambda marker: parts[marker[1]], text)
    return FIGURE.sub(lambda figure: _borrowed(root, figure), text)


def write_figures(root: Path) -> None:
    """chapters/figures/<name>: every named figure of the executed chapters, and those drawn from records."""
    folder = root / "chapters/figures"
    shutil.rmtree(folder, ignore_errors=True)  # a figure of an earlier build would pass for one of this
    folder.mkdir()
    if (root / "chapters/claims").exists():
        draw_effects(_ledger(root), folder / "effects.svg")
    draw_speed(timings()["rows"], folder / "speed.svg")
    for path in chapters(root):
        for name, cell in _named_figures(path):
            for output in cell.outputs:
                for kind, suffix in SUFFIXES.items():
                    if kind in output.get("data", {}):
                        data = output.data[kind]
                        content = data.encode() if suffix == ".svg" else base64.b64decode(data)
                        (folder / name).with_suffix(suffix).write_bytes(content)


def _cells(path: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def _named_figures(path: Path) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    for cell in _cells(path):
        if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
            yield name, cell


def _borrowed(root: Path, figure: re.Match) -> str:
    """The figure, or a link to the chapter that draws it where that wasn't executed."""
    chapter = _drawn_in(root).get(figure[1])
    if chapter is None or any((root / "chapters/figures").glob(f"{figure[1]}.*")):
        return figure[0]
    return f"The figure that belongs here is drawn in [](<{chapter.name}>)."


def _refer_to_chapter(app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Node) -> nodes.Node | None:
    """A figure that wasn't drawn has no number: what refers to it leads to its chapter."""
    chapter = _drawn_in(Path(app.srcdir)).get(node["reftarget"])
    if chapter is None:
        return None
    page = f"chapters/{chapter.stem}"
    if not node["refexplicit"]:
        text = nodes.inline(text=f"a figure of “{env.titles[page].astext()}”")
    return make_refnode(app.builder, node["refdoc"], page, None, text)


@cache
def _drawn_in(root: Path) -> dict[str, Path]:
    """The chapter of each figure."""
    return {name: path for path in chapters(root) for name, _ in _named_figures(path)}


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    if page.startswith("chapters/"):
        source[0] = filled(Path(app.srcdir), page.removeprefix("chapters/"), source[0])


def _to_fill(app: Sphinx) -> Iterator[str]:
    """The pages whose generated parts hang on more than their source."""
    for page in app.env.found_docs:
        path = Path(app.env.doc2path(page))
        if path.suffix == ".md" and MARKER.search(path.read_text("utf-8")):
            yield page


def _set_buttons(app: Sphinx, config: Config) -> None:
    """Buttons and a link in the footer where the repository has an address: an empty one is an error to the theme."""
    options = config.html_theme_options
    if url := options.get("repository_url"):
        options |= {"use_issues_button": True, "use_repository_button": True}
        options["extra_footer"] = options["extra_footer"].replace(REPORT, f'<a href="{url}/issues">Open an issue</a>')
    else:
        options.pop("launch_buttons", None)
