"""The chapters keep the house rules, and the rules notice when they don't."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rules import guide_faults, notebook_faults, output_faults

from genlib.book.repository import address, assignments, chapters, guides, notebooks, setup_cell

ROOT = Path(__file__).parents[2]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "chapters").glob("*.md")), *notebooks(ROOT), *assignments(ROOT)]
EXERCISE = "```{{exercise-start}} •• 10 minutes\n:label: ex-{0}\n```\nWhy is that so?\n```{{exercise-end}}\n```"
TITLE = """# Title
**Question.** Why? You will be able to say. **Prerequisites.** None. **Run time.**
[execution times](execution_times.md). **GPU.** Not needed."""


@pytest.fixture
def notebook():
    """A small chapter that keeps every rule."""
    figure = {"mystnb": {"image": {"alt": "A line"}, "figure": {"caption": "A line", "name": "fig-line"}}}
    cells = [
        new_markdown_cell(TITLE),
        new_code_cell(setup_cell(""), metadata={"tags": ["hide-cell"]}),
        new_markdown_cell("Eight words of prose for each visible line. " * 2),
        new_code_cell("figure = draw()", metadata=figure),
    ]
    for number in range(4):
        cells += [
            new_markdown_cell(EXERCISE.format(number)),
            new_markdown_cell(f"```{{solution-start}} ex-{number}\n:class: dropdown\n```"),
            new_code_cell("assert True"),
            new_markdown_cell("```{solution-end}\n```"),
        ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_fence_stands_on_a_line_of_its_own(path):
    """What follows one that doesn't is within its directive: a figure had half of a page for its legend."""
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" else []
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"] or [path.read_text("utf-8")]
    assert [line for text in texts for line in text.splitlines() if re.search(r"[^\s`:].*(```|:::)$", line)] == []


@pytest.mark.parametrize("path", chapters(ROOT), ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    assert list(notebook_faults(notebook, setup_cell(address(ROOT)))) == []


@pytest.mark.parametrize("path", guides(ROOT), ids=lambda path: path.stem)
def test_guide_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    assert list(guide_faults(notebook, setup_cell(address(ROOT)))) == []


def test_there_are_chapters_and_guides():
    assert chapters(ROOT) and guides(ROOT)


def test_faultless_notebook_has_no_faults(notebook):
    assert list(notebook_faults(notebook, setup_cell(""))) == []
    assert list(guide_faults(notebook, setup_cell(""))) == []
    assert list(output_faults(notebook)) == []


def _first_cell(notebook):
    notebook.cells[0].source = "# Title\n**Question.** Why?"


def _setup(notebook):
    notebook.cells[1].source += "\n"


def _kernel(notebook):
    notebook.metadata.kernelspec.name = "conda-env-mine"


def _ids(notebook):
    notebook.cells[3].id = notebook.cells[2].id


def _output(notebook):
    notebook.cells[3].outputs = [new_output("stream", text="1")]


def _count(notebook):
    notebook.cells[3].execution_count = 1


def _tag(notebook):
    notebook.cells[3].metadata.tags = ["raises-exception"]


def _alt(notebook):
    del notebook.cells[3].metadata.mystnb["image"]


def _caption(notebook):
    notebook.cells[3].metadata.mystnb.figure.caption = " "


def _long(notebook):
    notebook.cells[3].source = "x = 1\n" * 16


def _terse(notebook):
    notebook.cells[2].source = "$a + b + c + d + e + f + g + h$ " * 9
    notebook.cells[3].source = "x = 1\n" * 15


def _few_exercises(notebook):
    del notebook.cells[-4:]


def _no_minutes(notebook):
    notebook.cells[4].source = notebook.cells[4].source.replace("10 minutes", "")


def _no_solution(notebook):
    notebook.cells[5].source = notebook.cells[5].source.replace("ex-0", "ex-9")


def _no_code(notebook):
    del notebook.cells[6]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_first_cell, "GPU is needed"),
        (_setup, "set-up cell"),
        (_kernel, "kernelspec"),
        (_ids, "share them"),
        (_output, "output is committed"),
        (_count, "output is committed"),
        (_tag, "raises-exception"),
        (_alt, "without alt text"),
        (_caption, "without caption"),
        (_long, "16 visible lines"),
        (_terse, "words of prose"),
        (_few_exercises, "3 exercises"),
        (_no_minutes, "minutes"),
        (_no_solution, "ex-0: no solution"),
        (_no_code, "drop-down with code"),
    ],
)
def test_fault_is_found(notebook, spoil, fault):
    spoil(notebook)
    assert any(fault in found for found in notebook_faults(notebook, setup_cell("")))


@pytest.mark.parametrize(
    "line",
    [
        "from tqdm.auto import tqdm",
        "import ipywidgets as widgets",
        "import plotly.express as px",
        "glue('x', 1)",
        "warnings.filterwarnings('ignore')",
        "import pickle",
        "np.load(path, allow_pickle=True)",
        "scale = os.environ['GENLIB_SCALE']",
        "%matplotlib inline",
        "%%time",
        "  !ls",
    ],
)
def test_forbidden_line_is_found(notebook, line):
    notebook.cells[3].source = line
    assert len(list(notebook_faults(notebook, setup_cell("")))) == 1


def test_modulo_is_no_magic(notebook):
    notebook.cells[3].source = "x = (a\n     % b)"
    assert list(notebook_faults(notebook, setup_cell(""))) == []


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (new_output("stream", name="stderr", text="UserWarning: no"), "stderr"),
        (new_output("error", ename="ValueError", evalue="", traceback=[]), "raised ValueError"),
        (new_output("display_data", data={"image/png": ""}), "without alt text"),
    ],
)
def test_bad_output_is_found(notebook, output, fault):
    notebook.cells[6].outputs = [output]
    assert any(fault in found for found in output_faults(notebook))
