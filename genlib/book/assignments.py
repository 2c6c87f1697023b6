"""The assignments: releases made from the sources, and submissions graded, both with nbgrader.

    python -m genlib.book.assignments release [NAME]
    python -m genlib.book.assignments demo [NAME]
    python -m genlib.book.assignments grade SUBMISSIONS COURSE [--name NAME] [--overlay FOLDER] [--timeout SECONDS]
    python -m genlib.book.assignments totals COURSE

SUBMISSIONS holds a folder for each student, and in it NAME.ipynb for each sheet; COURSE is where nbgrader keeps its
gradebook, made if need be. NAME picks one sheet in place of all.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

__all__ = [
    "example",
    "grade",
    "grades",
    "lms_table",
    "main",
    "marks",
    "points_table",
    "read",
    "release",
    "replace_cells",
    "sheets",
]

ROOT = Path(__file__).parents[2]
HOME = ROOT / "chapters/assignments"
EXAMPLES = ("right", "blank", "hard-coded")
TIMEOUT = 60  # seconds a cell
HIDDEN = "### BEGIN HIDDEN TESTS"
STUDENT = re.compile(r"""^STUDENT_ID *= *["'](.*?)["']""", re.MULTILINE)


def sheets(name: str | None = None) -> list[str]:
    """The names of all assignments in order, or `name` alone if it is one of them."""
    names = sorted(path.name for path in (HOME / "source").iterdir() if path.is_dir())
    if name and name not in names:
        raise ValueError(f"NAME is {name!r}; it must be one of {', '.join(names)}, or be left out for all of them")
    return [name] if name else names


def read(folder: Path, name: str) -> NotebookNode:
    """The notebook of the assignment `name` in a folder of nbgrader's."""
    return nbformat.read(folder / name / f"{name}.ipynb", as_version=4)


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


def release(names: list[str], into: Path) -> None:
    """Write what students get of these assignments to the folder `into`, all of them or none."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for name in names:
            _write(read(HOME / "source", name), course / "source", name)
        api = _nbgrader(course, database=False)
        for name in names:
            _succeed(api.generate_assignment(name), name)
        notebooks = {name: read(course / "release", name) for name in names}
    for name, notebook in notebooks.items():
        _write(notebook, into, name)


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


def example(kind: str, name: str) -> NotebookNode:
    """One of the three example submissions for an assignment, handed in by a student named like it."""
    if kind == "blank":
        return read(HOME / "release", name)
    notebook = read(HOME / "source", name)
    if kind == "hard-coded":
        replace_cells(notebook, HOME / "hard_coded" / name, tests=False)
    cell = marks(notebook)["student"]
    cell.source = STUDENT.sub(f'STUDENT_ID = "{kind}"', cell.source)
    return notebook


def grade(
    names: list[str], submissions: Path, course: Path, *, overlay: Path | None = None, timeout: int = TIMEOUT
) -> pd.DataFrame:
    """Grade the submissions to these assignments in the folder `course`, and return `grades` of all that is there.

    `overlay` holds folders NAME of private tests, see `replace_cells`; a cell may run for `timeout` seconds.
    """
    students = _folders(submissions)
    if not students:
        raise ValueError(f"{submissions} holds no folder; it must hold one for each student, named like the student")
    sources = {name: read(HOME / "source", name) for name in names}
    if overlay:
        if unknown := sorted(set(_folders(overlay)) - set(sheets())):
            raise ValueError(f"{overlay} holds {', '.join(unknown)}; its folders must be named like assignments")
        for name in names:
            replace_cells(sources[name], overlay / name, tests=True)
    api = _nbgrader(course, timeout=timeout)
    for name in names:
        _write(sources[name], course / "source", name)
        _succeed(api.generate_assignment(name), name)
        for student in students:
            if (path := submissions / student / f"{name}.ipynb").exists():
                _log(course, student, name, _autograde(api, path, student, name))
    return grades(course)


def grades(course: Path) -> pd.DataFrame:
    """One row a student and assignment: the points of each part, their sum, what is left to mark by hand, remarks.

    A submission that could not be graded has no points in any part, and a remark that says why.
    """
    graded = sorted(course.glob("remarks/*/*.json"))
    if not graded:
        raise ValueError(f"{course} holds no graded submission; are they in folders STUDENT/NAME.ipynb?")
    rows = []
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for path in graded:
            name, student = path.parent.name, path.stem
            remarks = json.loads(path.read_text("utf-8"))
            notebook = gradebook.find_submission(name, student).notebooks[0]
            parts = {part.name: part for part in notebook.grades}
            known = marks(read(course / "source", name))
            points = {id: parts[id].score if remarks["graded"] else 0.0 for id in known if id in parts}
            waiting = [parts[id].max_score for id in points if remarks["graded"] and parts[id].needs_manual_grade]
            most = sum(part.max_score for part in parts.values())
            rows.append({"student": student, "assignment": name} | points)
            rows[-1] |= {"points": sum(points.values()), "of": most, "to mark": sum(waiting)}
            rows[-1] |= {"remarks": "; ".join(remarks["text"])}
    return pd.DataFrame(rows)


def lms_table(table: pd.DataFrame) -> pd.DataFrame:
    """The points as a learning management system reads them: one row a student, one column an assignment, the sum."""
    wide = table.pivot(index="student", columns="assignment", values="points")
    return wide.assign(total=wide.sum(axis=1)).reset_index().rename_axis(columns=None)


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _autograde(api: NbGraderAPI, path: Path, student: str, name: str) -> dict:
    """Whether nbgrader could grade the submission, and what an instructor should know of it."""
    target = Path(api.coursedir.root) / "submitted" / student / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target / f"{name}.ipynb")
    outcome = api.autograde(name, student)
    text = [] if outcome["success"] else [f"could not be graded: {_reason(outcome)}"]
    signed = STUDENT.search("\n".join(_sources(path)))
    if outcome["success"] and (signed is None or signed[1] != student):
        text.append("not signed" if signed is None else f"signed {signed[1]!r}")
    return {"graded": outcome["success"], "text": text}


def _sources(path: Path) -> Iterator[str]:
    try:
        yield from (cell.source for cell in nbformat.read(path, as_version=4).cells)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError):
        return


def _reason(outcome: dict) -> str:
    """The first exception in nbgrader's log; those that follow are its own."""
    found = re.search(r"^ *([\w.]*(?:Error|Exception|Invalid)\b.*)$", outcome.get("log", ""), re.MULTILINE)
    return found[1][:200] if found else "nbgrader does not say why"


def _log(course: Path, student: str, name: str, remarks: dict) -> None:
    path = course / "remarks" / name / f"{student}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(remarks), "utf-8")


def _nbgrader(course: Path, *, database: bool = True, timeout: int = TIMEOUT) -> NbGraderAPI:
    # nbgrader calls `alembic` by name when it makes a gradebook; the one of this Python may not be on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    config = Config()
    config.CourseDirectory.root = str(course.resolve())
    config.GenerateAssignment.no_database = not database
    config.SaveCells.enabled = database
    config.Execute.timeout = timeout
    config.Execute.raise_on_iopub_timeout = False  # else a cell that is slow to stop spoils all others
    config.Execute.extra_arguments = ["--HistoryManager.hist_file=:memory:", "--log-level=ERROR"]
    return NbGraderAPI(config=config)


def _succeed(outcome: dict, name: str) -> None:
    if not outcome["success"]:
        raise ValueError(f"{name}: nbgrader made no release of it: {_reason(outcome)}")


def _write(notebook: NotebookNode, folder: Path, name: str) -> None:
    path = folder / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    nbformat.write(notebook, new)
    os.replace(new, path)


def _demo(names: list[str], csv: Path) -> None:
    """Grade the three example submissions, print what each part got, and write the totals to `csv`."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in EXAMPLES:
            (Path(folder) / "submitted" / kind).mkdir(parents=True)
            for name in names:
                nbformat.write(example(kind, name), Path(folder) / "submitted" / kind / f"{name}.ipynb")
        table = grade(names, Path(folder) / "submitted", Path(folder) / "course")
    csv.parent.mkdir(exist_ok=True)
    lms_table(table).to_csv(csv, index=False)
    print(table.to_string(index=False), f"\n{csv.relative_to(ROOT)} holds the totals, one row a student.")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder is missing; give SUBMISSIONS= and COURSE=")
    return Path(text)


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries
        _run(_options(arguments))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="assignments.py")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("release", "demo"):
        commands.add_parser(command).add_argument("name", nargs="?")
    grading = commands.add_parser("grade")
    grading.add_argument("submissions", type=_path)
    grading.add_argument("course", type=_path)
    grading.add_argument("--name")
    grading.add_argument("--overlay", type=_path)
    grading.add_argument("--timeout", type=int, default=TIMEOUT)
    commands.add_parser("totals").add_argument("course", type=_path)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    if options.command == "release":
        release(sheets(options.name), HOME / "release")
    elif options.command == "demo":
        _demo(sheets(options.name), ROOT / "build/grade-demo.csv")
    else:
        if options.command == "grade":
            table = grade(
                sheets(options.name),
                options.submissions,
                options.course,
                overlay=options.overlay,
                timeout=options.timeout,
            )
        else:
            table = grades(options.course)
        table.to_csv(options.course / "grades.csv", index=False)
        lms_table(table).to_csv(options.course / "lms.csv", index=False)
        print(table.to_string(index=False))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
