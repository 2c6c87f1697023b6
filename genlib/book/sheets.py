"""The sheets of the assignments as they lie in the repository: sources with solutions and tests, and releases."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

__all__ = ["checked", "marks", "points_table", "read", "replace_cells", "sheets", "write"]

ROOT = Path(__file__).parents[2]
HOME = ROOT / "chapters/assignments"
HIDDEN = "### BEGIN HIDDEN TESTS"


def sheets(name: str | None = None) -> list[str]:
    """The names of all assignments in order, or `name` alone if it is one of them."""
    names = sorted(path.name for path in (HOME / "source").iterdir() if path.is_dir())
    if name and name not in names:
        raise ValueError(f"NAME is {name!r}; it must be one of {', '.join(names)}, or be left out for all of them")
    return [name] if name else names


def read(folder: Path, name: str) -> NotebookNode:
    """The notebook of the assignment `name` in a folder of nbgrader's."""
    return nbformat.read(folder / name / f"{name}.ipynb", as_version=4)


def write(notebook: NotebookNode, folder: Path, name: str) -> None:
    """Write the notebook of the assignment `name` where `read` finds it, whole or not at all."""
    path = folder / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    nbformat.write(notebook, new)
    os.replace(new, path)


def marks(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that nbgrader knows, by their grade_id."""
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def points_table() -> str:
    """The points of all assignments as the instructor's page shows them, in Markdown."""
    rows = []
    for name in sheets():
        notebook = read(HOME / "source", name)
        points = {id: cell.metadata.nbgrader.get("points", 0) for id, cell in marks(notebook).items()}
        automatic = {
            part: f"{points[f'{part}-public']} + {points[f'{part}-hidden']}" for part in ("kernel", "experiment")
        }
        minutes = re.search(r"About (\d+) minutes", notebook.cells[0].source)[1]
        rows.append({"Assignment": f"[](<assignments/release/{name}/{name}.ipynb>)", "Minutes": minutes})
        by_hand = points["question"] + points["proof"]
        rows[-1] |= {"A": automatic["kernel"], "B": automatic["experiment"]}
        rows[-1] |= {"C": str(points["question"]), "D": str(points["proof"])}
        rows[-1] |= {"Tests": str(sum(points.values()) - by_hand), "Hand": str(by_hand)}
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def replace_cells(notebook: NotebookNode, folder: Path, *, tests: bool) -> NotebookNode:
    """The notebook with each cell replaced for which `folder` has a file GRADE_ID.py: its tests, or its solutions.

    A test that would stand in the release is refused, and a file whose name is no grade_id of such a cell.
    """
    cells = {id: cell for id, cell in marks(notebook).items() if bool(cell.metadata.nbgrader.locked) == tests}
    for path in sorted(folder.glob("*")):
        if path.suffix != ".py" or path.stem not in cells:
            expected = ", ".join(f"{id}.py" for id in cells)
            raise ValueError(f"{path}: no cell of this assignment has that name; expected {expected}")
        source = path.read_text("utf-8").rstrip("\n")
        if tests and HIDDEN not in source:
            raise ValueError(f"{path}: the line {HIDDEN!r} is missing, so that students would get these tests")
        cells[path.stem].source = source
    return notebook


def checked(source: NotebookNode, name: str) -> NotebookNode:
    """The sheet, if none of its tests ends in a value: nbgrader gives full points for one that is no plain number."""
    for id, cell in marks(source).items():
        if cell.cell_type == "code" and cell.metadata.nbgrader.grade:
            tree = ast.parse(TransformerManager().transform_cell(cell.source), f"{name}, {id}")
            value = tree.body and isinstance(tree.body[-1], ast.Expr) and ast.unparse(tree.body[-1])
            if value and not re.match(r"float\(max\(0, |[\d.]+$", value):
                raise ValueError(
                    f"{name}: the test {id} ends in the value of {value}; let it end in an assertion, or for a part of "
                    f"the points in float(max(0, …)): what is no plain number counts as full points"
                )
    return source
