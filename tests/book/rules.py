"""The house rules for chapters, their records, and built pages: functions that yield what is wrong, a line a fault."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from pytest import approx

from genlib.book import inference
from genlib.book.claims import PLACE, of_claim
from genlib.book.criteria import Criterion
from genlib.book.parts import Effect, Part

__all__ = [
    "built_pages",
    "exceptions",
    "exceptions_faults",
    "guide_faults",
    "notebook_faults",
    "output_faults",
    "page_faults",
    "parsed",
    "record_faults",
    "site_faults",
]

HIDDEN = {"hide-input", "hide-cell", "remove-cell"}
TAGS = HIDDEN | {"hide-output"}
MOST_LINES = 15
WORDS_PER_LINE = 8
FEWEST_EXERCISES = 4
FIRST_CELL = {
    r"\A# \S": "a title",
    r"(?i)question": "the question",
    r"(?i)able to": "what the reader will be able to do",
    r"(?i)prerequisite": "the prerequisites",
    r"\[execution times\]\(execution_times\.md\)": "the link that becomes the run time",
    r"\bGPU\b": "whether a GPU is needed",
}
FORBIDDEN = {
    r"tqdm\.(auto|notebook)": "progress goes through genlib.progress",
    r"\b(ipywidgets|plotly)\b": "a page works without widgets",
    r"\bglue\(|import glue": "glue is not part of the MyST subset that the book uses",
    r"filterwarnings|simplefilter|catch_warnings": "a warning is mended, not hidden",
    r"pickle": "no pickles",
    r"os\.environ|getenv": "genlib.scale alone reads the environment",
    r"(?m)^\s*(%(?!pip\b)|!)\S+": "no magic but %pip",
}


def notebook_faults(notebook: NotebookNode, setup_cell: str) -> Iterator[str]:
    """What a chapter's source does against the house rules."""
    for pattern, what in FIRST_CELL.items():
        if not re.search(pattern, notebook.cells[0].source):
            yield f"the first cell lacks {what}"
    yield from guide_faults(notebook, setup_cell)
    yield from _exercise_faults(notebook.cells)


def guide_faults(notebook: NotebookNode, setup_cell: str) -> Iterator[str]:
    """What a notebook that is no chapter does against them: it needs no exercises, and no list of what it takes."""
    yield from _frame_faults(notebook, setup_cell)
    in_solution = False
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            yield from (f"cell {number}: {fault}" for fault in _cell_faults(cell, in_solution))
        else:
            in_solution = (in_solution or "{solution-start}" in cell.source) and "{solution-end}" not in cell.source
    yield from _prose_faults(notebook.cells)


def record_faults(record: dict) -> Iterator[str]:
    """What is wrong with a chapter's record of claims. What can be computed from the effects is computed again."""
    block = record["environment"]["seed_block"]
    for claim in record["claims"]:
        id, seeds = claim["id"], claim["seeds"]
        if not claim.get("parts"):
            yield f"{id}: without parts: `make record`"
            continue
        if not PLACE.search(claim.get("source", "")):
            yield f"{id}: its source {claim.get('source')!r} names no section, theorem, figure or table"
        if seeds != [1000 * block + i for i in range(len(seeds))] or len(seeds) < 3:
            yield f"{id}: its seeds {seeds} are not the first of block {block}: none may be left out"
        for name, part in claim["parts"].items():
            yield from (f"{id} ({name}): {fault}" for fault in _part_faults(part, len(seeds)))
        verdict = of_claim({name: (part.get("whose"), part.get("verdict")) for name, part in claim["parts"].items()})
        if claim["verdict"] != verdict:
            yield f"{id}: its verdict is {claim['verdict']!r}, and that of its parts {verdict!r}"


def _part_faults(kept: dict, seeds: int) -> Iterator[str]:
    if kept.get("whose") not in ("paper", "ours") or not isinstance(kept.get("shown"), bool):
        yield f"whose it is and whether it is shown: {kept.get('whose')!r}, {kept.get('shown')!r}"
        return
    if len(kept["values"]) != seeds:
        yield f"{len(kept['values'])} effects for {seeds} seeds"
        return
    if kept["shown"] and (kept["verdict"] != "shown" or min(kept["values"]) <= 0):
        yield f"it holds by a theorem; its verdict is {kept['verdict']!r}, its least effect {min(kept['values'])}"
    if not kept["shown"] and not (kept.get("smallest") and kept["smallest"] > 0):
        yield "no smallest effect of interest"
        return
    ends = (-float("inf"), float("inf"))
    bounds = tuple(end if bound is None else bound for bound, end in zip(kept["bounds"], ends, strict=True))
    part = Part(kept["criterion"], kept["smallest"], kept["whose"], kept["shown"], bounds)
    of = Criterion.of_record(kept["of"])
    again = Effect(part, tuple(kept["values"]), of)
    if again.verdict != kept["verdict"]:
        yield f"its verdict is {kept['verdict']!r}, and its effects say {again.verdict!r}"
    if list(of.effects) != approx(kept["values"], rel=1e-4, abs=1e-5):
        yield f"its effects are {kept['values']}, and its quantities say {of.effects.tolist()}"
    for name, tolerance in {"mean": 1e-6, "interval": 1e-6, "p": 1e-4, "power": 0.01}.items():
        value = getattr(again, name)
        if kept[name] != (value if value is None else approx(value, rel=1e-4, abs=tolerance)):
            yield f"its {name} is {kept[name]}, and its effects say {value}"


def exceptions(parts: pd.DataFrame) -> dict[str, str]:
    """What `what_did_not_reproduce.md` has to say of each claim that is not plainly reproduced: its verdict.

    Of one that is reproduced partly also the other verdicts, and whether a part is reproduced on the digits and not
    on generated data: `partly: contradicted, open, on generated data`.
    """
    tested, said = parts[parts["tested"] & (parts["scale"] == "small")], {}
    for id, of in tested.groupby("id", sort=False):
        verdict = of["of_claim"].iloc[0]
        others = [word for word in inference.VERDICTS[1:] if word in set(of["verdict"])]
        if verdict == "partly":
            parted = of["again"].notna() & (of["again"] != of["verdict"]) & (of["verdict"] == "reproduced")
            verdict = f"partly: {', '.join(others + ['on generated data'] * bool(parted.any()))}"
        if verdict != "reproduced":
            said[id] = verdict
    return said


def exceptions_faults(text: str, expected: dict[str, str]) -> Iterator[str]:
    """Where a page's bold claims, `**zhang2017.6** (partly: open)`, are not those expected with their verdicts."""
    named = {}
    for id, verdict in re.findall(r"\*\*(\w+\.\d+)\.?\*\*(?:\s+\(([^)]*)\))?", text):
        if id in named:
            yield f"{id}: in bold twice"
        named[id] = " ".join(verdict.split())
    for id in sorted(named.keys() | expected.keys()):
        if id not in named:
            yield f"{id}: not named, and its record says {expected[id]}"
        elif id not in expected:
            yield f"{id}: named, and its record does not say that anything came out otherwise"
        elif named[id] != expected[id]:
            yield f"{id}: followed by ({named[id]}), and its record says ({expected[id]})"


def output_faults(notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with the outputs of an executed chapter."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {number}: raised {output.ename}"
            if output.get("name") == "stderr":
                yield f"cell {number}: wrote to stderr: {output.text[:80]!r}"
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                yield from (f"cell {number}: {fault}" for fault in _figure_faults(cell))


def built_pages(site: Path) -> list[Path]:
    """The pages of the built book, in order."""
    return sorted((site / "chapters").rglob("*.html"))


@cache
def parsed(path: Path) -> BeautifulSoup:
    """A built page, read once: its readers leave it as it is."""
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def page_faults(page: BeautifulSoup) -> Iterator[str]:
    """What is wrong with one built page by itself."""
    for address in _loaded(page):
        if urlsplit(address).netloc:
            yield f"loads {address} from another host"
    for image in page.find_all("img"):
        if not image.get("alt", "").strip():
            yield f"an image without alt text: {image.get('src', '')[:80]}"
    article = page.find("article") or page
    if article.find(class_="stderr"):
        yield "output on stderr"
    verbatim = ["pre", "code", "script", "style"]
    if "$$" in "".join(text for text in article.find_all(string=True) if not text.find_parent(verbatim)):
        yield "literal dollar signs in place of a formula"
    for heading in article.select("figure :is(h1, h2, h3, h4)"):
        yield f"the heading {heading.get_text()!r} in a figure: its fence isn't closed"


def site_faults(root: Path) -> Iterator[str]:
    """What is wrong with the built site as a whole: style sheets that load from elsewhere, links that lead nowhere."""
    for path in root.rglob("*.css"):
        for address in _css_addresses(path.read_text("utf-8")):
            if urlsplit(address).netloc:
                yield f"{path.relative_to(root)}: loads {address} from another host"
    files = [path for path in root.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): parsed(path) for path in files}
    anchors = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    for path, page in pages.items():
        for address in sorted({link["href"] for link in page.find_all("a", href=True)}):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and target in anchors and fragment not in anchors[target]):
                yield f"{path.name}: the link {address} leads nowhere"


def _frame_faults(notebook: NotebookNode, setup_cell: str) -> Iterator[str]:
    title, setup, *_ = notebook.cells
    if title.cell_type != "markdown":
        yield "the first cell is not Markdown"
    if setup.source != setup_cell or _tags(setup) != {"hide-cell"}:
        yield "the second cell is not the set-up cell, tagged hide-cell"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec is not python3"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "cells lack ids or share them"


def _cell_faults(cell: NotebookNode, in_solution: bool) -> Iterator[str]:
    if cell.outputs or cell.execution_count is not None:
        yield "output is committed"
    if unknown := _tags(cell) - TAGS:
        yield f"tags that are not allowed: {', '.join(sorted(unknown))}"
    if _visible(cell) and not in_solution and len(_lines(cell)) > MOST_LINES:
        yield f"{len(_lines(cell))} visible lines, more than {MOST_LINES}"
    for pattern, why in FORBIDDEN.items():
        if found := re.search(pattern, cell.source):
            yield f"{why}: {found[0].strip()}"
    if "figure" in cell.metadata.get("mystnb", {}):
        yield from _figure_faults(cell)


def _figure_faults(cell: NotebookNode) -> Iterator[str]:
    shown = cell.metadata.get("mystnb", {})
    image, figure = shown.get("image", {}), shown.get("figure", {})
    for what, text in {
        "alt text": image.get("alt"),
        "caption": figure.get("caption"),
        "name": figure.get("name"),
    }.items():
        if not (text or "").strip():
            yield f"a figure without {what}"


def _prose_faults(cells: list[NotebookNode]) -> Iterator[str]:
    words = lines = 0
    in_solution = False
    for cell in cells:
        if cell.cell_type == "markdown":
            in_solution = in_solution or "{solution-start}" in cell.source
            words += 0 if in_solution else len(re.findall(r"[^\W\d_]{2,}", _prose(cell.source)))
            in_solution = in_solution and "{solution-end}" not in cell.source
        elif not in_solution and _visible(cell):
            lines += len(_lines(cell))
    if words < WORDS_PER_LINE * lines:
        yield f"{words} words of prose for {lines} visible lines of code, fewer than {WORDS_PER_LINE} a line"


def _exercise_faults(cells: list[NotebookNode]) -> Iterator[str]:
    text = "\n".join(cell.source if cell.cell_type == "markdown" else "\n<code>\n" for cell in cells)
    exercises = re.findall(r"\{exercise(?:-start)?\}([^\n]*)\n(?::(?!label)[^\n]*\n)*:label: *(\S+)", text)
    solutions = dict(re.findall(r"\{solution-start\} *(\S+)\n(.*?)\{solution-end\}", text, flags=re.DOTALL))
    if len(exercises) < FEWEST_EXERCISES:
        yield f"{len(exercises)} exercises, fewer than {FEWEST_EXERCISES}"
    for title, label in exercises:
        if not re.search(r"•.*\d+ min", title):
            yield f"exercise {label}: its title lacks • or the minutes"
        if label not in solutions:
            yield f"exercise {label}: no solution"
        elif ":class: dropdown" not in solutions[label] or "<code>" not in solutions[label]:
            yield f"exercise {label}: its solution is not a drop-down with code"


def _tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _visible(cell: NotebookNode) -> bool:
    return not _tags(cell) & HIDDEN


def _lines(cell: NotebookNode) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def _prose(markdown: str) -> str:
    """Markdown without its formulas, the names of its roles, and the frames of its directives."""
    markdown = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|\{[\w:-]+\}", " ", markdown, flags=re.DOTALL)
    return re.sub(r"(?m)^(`{3,}|:{3,}).*$|^:[\w-]+:.*$", " ", markdown)


def _loaded(page: BeautifulSoup) -> Iterator[str]:
    """The addresses that a browser loads together with the page."""
    for name in ("src", "srcset", "poster", "data"):
        yield from (tag[name] for tag in page.find_all(attrs={name: True}) if not tag[name].startswith("data:"))
    for link in page.find_all("link", href=True):
        if not {"canonical", "next", "prev", "author", "license"} & set(link["rel"]):
            yield link["href"]
    for style in page.find_all("style"):
        yield from _css_addresses(style.get_text())
    for tag in page.find_all(style=True):
        yield from _css_addresses(tag["style"])


def _css_addresses(css: str) -> Iterator[str]:
    for address in re.findall(r"""(?:url\(|@import\s)\s*["']?([^"')]+)""", css):
        if not address.startswith("data:"):
            yield address
