"""What must not pass: an error in a chapter, a verdict that differs from its record, a broken reference."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BUILD_OPTIONS = re.search(r"jupyter-book build \S+ --path-output \S+ (.*)", (ROOT / "Makefile").read_text())[1].split()
NBMAKE_OPTIONS = re.search(r"pytest (--nbmake .*) --nbmake-timeout", (ROOT / "Makefile").read_text())[1]
KILLED_ONCE = """
import pathlib
from joblib import Parallel, delayed
first = not pathlib.Path("met").exists()
pathlib.Path("met").touch()
if first:
    Parallel(n_jobs=2)(delayed(exec)("import os; os.kill(os.getpid(), 9)") for _ in range(2))
"""
DECIDE = """
from genlib.book.claims import Claims, paper
claims = Claims("{}", folder="claims")
part = paper("the difference is positive", smallest=0.1)
claim = claims.state("paper.1", "It grows.", source="Section 1", seeds=[0, 1, 2], parts=part)
claim.decide([1.0, 1.1, 1.2])
claims.check()
"""
SAY = """
from genlib.book.claims import Claims
error, limit = 0.25, 0.2
Claims("03_says").guard(error < limit, "errors are small")
"""


def _notebook(path, *cells):
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, cells)])
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def _configure(root, execution, url=""):
    config = (ROOT / "_config.yml").read_text("utf-8")
    config = re.sub(r"execute_notebooks: .*", f'execute_notebooks: "{execution}"', config)
    (root / "_config.yml").write_text(re.sub(r'  url: ".*"', f'  url: "{url}"', config))


def _build(root):
    command = [BIN / "jupyter-book", "build", root, *BUILD_OPTIONS]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def book(tmp_path):
    """A book of one page and one chapter, configured like the real one."""
    _configure(tmp_path, "off")
    shutil.copytree(ROOT / "chapters/_static", tmp_path / "chapters/_static")
    shutil.copy(ROOT / "chapters/references.bib", tmp_path / "chapters")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\nchapters:\n- file: chapters/01_try\n")
    (tmp_path / "chapters/index.md").write_text(
        "# Title\n\nSee [the chapter](01_try.ipynb) and {cite:t}`zhang2017`.\n\n```{bibliography}\n```\n"
    )
    _notebook(tmp_path / "chapters/01_try.ipynb", "print(1)")
    return tmp_path


def test_error_differing_verdict_and_sentence_fail(tmp_path):
    (tmp_path / "claims").mkdir()
    _notebook(tmp_path / "00_error.ipynb", "1 / 0")
    _notebook(tmp_path / "03_says.ipynb", SAY)
    for name, sign in {"01_same": 1, "02_other": -1}.items():
        part = {"whose": "paper", "shown": False, "smallest": 0.1, "bounds": [None, None]}
        part |= {
            "verdict": "reproduced" if sign > 0 else "contradicted",
            "values": [1.0 * sign, 1.2 * sign, 1.1 * sign],
        }
        record = {"environment": {}, "claims": [{"id": "paper.1", "parts": {"paper.1": part}}]}
        (tmp_path / f"claims/{name}.small.json").write_text(json.dumps(record))
        _notebook(tmp_path / f"{name}.ipynb", DECIDE.format(name))
    command = [BIN / "pytest", "--nbmake", "-p", "no:cacheprovider", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "3 failed, 1 passed" in run.stdout
    assert "ZeroDivisionError" in run.stdout
    assert "paper.1: recorded contradicted, here reproduced" in run.stdout
    assert "03_says: the text says that errors are small (error < limit: 0.25, 0.2)" in run.stdout


def test_a_chapter_whose_process_was_killed_runs_once_more_and_one_that_fails_does_not(tmp_path):
    _notebook(tmp_path / "00_killed.ipynb", KILLED_ONCE)
    _notebook(tmp_path / "01_error.ipynb", "1 / 0")
    command = [BIN / "pytest", *shlex.split(NBMAKE_OPTIONS), "-p", "no:cacheprovider", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 failed, 1 passed, 1 rerun" in run.stdout


def test_book_builds_and_offers_colab_where_there_is_an_address(book):
    _configure(book, "off", "https://github.com/owner/name")
    run = _build(book)
    assert run.returncode == 0, run.stderr
    chapter = BeautifulSoup((book / "_build/html/chapters/01_try.html").read_text(), "html.parser")
    links = [link["href"] for link in chapter.find_all("a", href=True)]
    colab = "https://colab.research.google.com/github/owner/name/blob/main/chapters/01_try.ipynb"
    assert [link for link in links if "colab" in link] == [colab]
    assert "https://github.com/owner/name/issues" in links
    assert "colab" not in (book / "_build/html/chapters/index.html").read_text()


def test_broken_references_fail(book):
    broken = {
        "nowhere.md": "[nothing](nowhere.md)",
        "no such term": "{term}`no such term`",
        "nobody2017": "{cite:t}`nobody2017`",
        "missing.png": "![](missing.png)",
        "no-such-figure": "{numref}`no-such-figure`",
    }
    (book / "chapters/index.md").write_text("# Title\n\n" + "\n\n".join(broken.values()))
    run = _build(book)
    assert run.returncode != 0
    assert [name for name in broken if name not in run.stderr] == []


def test_sphinx_too_stops_at_a_notebook_that_raises(book):
    _configure(book, "force")
    _notebook(book / "chapters/01_try.ipynb", "1 / 0")
    run = _build(book)
    assert run.returncode != 0
    assert "ZeroDivisionError" in run.stdout + run.stderr
