"""The built book, as `make book` leaves it in _build/html: complete, and loading nothing from elsewhere."""

import json
from pathlib import Path

import nbformat
import pytest
import yaml
from rules import built_pages, output_faults, page_faults, parsed, site_faults

from genlib.book.repository import address, assignments, chapters, notebooks

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
EXECUTED = chapters(ROOT / "build/book")
NOTEBOOKS = notebooks(ROOT / "build/book")
PAGES = built_pages(SITE)

pytestmark = pytest.mark.skipif(not (ROOT / "_build/.complete").exists(), reason="the book is not built: make book")


def test_the_pages_are_those_of_the_table_of_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    listed = [contents["root"], *(entry["file"] for part in contents["parts"] for entry in part["chapters"])]
    assert sorted(listed) == sorted(str(path.relative_to(SITE).with_suffix("")) for path in PAGES)
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in notebooks(ROOT)} <= set(listed)
    assert (SITE / "index.html").exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE / "chapters")))
def test_page_is_faultless(path):
    assert list(page_faults(parsed(path))) == []


def test_site_is_faultless():
    assert list(site_faults(SITE)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_faultless(path):
    assert list(output_faults(nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_chapter_shows_the_claims_of_its_record(path):
    record = json.loads((ROOT / f"chapters/claims/{path.stem}.small.json").read_text("utf-8"))
    tables = parsed(SITE / f"chapters/{path.stem}.html").find_all("table")
    cells = {cell.get_text(strip=True) for table in tables for cell in table.find_all(["td", "th"])}
    assert record["claims"]
    assert {claim["id"] for claim in record["claims"]} <= cells


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_scoreboard_shows_every_claim(path):
    text = parsed(SITE / "chapters/scoreboard.html").find("article").get_text()
    for record in (ROOT / "chapters/claims").glob(f"{path.stem}.*.json"):
        assert all(claim["id"] in text for claim in json.loads(record.read_text("utf-8"))["claims"])


def test_run_times_are_filled_in():
    times = parsed(SITE / "chapters/execution_times.html").find("table").get_text()
    for path in chapters(ROOT):
        chapter = parsed(SITE / f"chapters/{path.stem}.html")
        assert chapter.find("h1").get_text().strip("#\n") in times.replace("\n", " ") or path.stem in times
        assert "small: " in chapter.find("article").get_text()


def test_colab_opens_each_notebook_once_there_is_an_address():
    released = [path for path in assignments(ROOT) if "release" in path.parts]
    runnable = {SITE / path.relative_to(ROOT).with_suffix(".html") for path in [*notebooks(ROOT), *released]}
    assert runnable <= set(PAGES)
    for path in PAGES:
        links = [a["href"] for a in parsed(path).find_all("a", href=True) if "colab.research" in a["href"]]
        assert len(links) == (1 if address(ROOT) and path in runnable else 0), path


def test_every_page_says_how_to_cite_and_report():
    for path in PAGES:
        footer = parsed(path).find("footer", class_="bd-footer-content") or parsed(path).find(
            class_="bd-footer-content"
        )
        assert "Cite as" in footer.get_text(), path.stem
        assert "Open an issue" in footer.get_text(), path.stem
