"""The assignments: releases made from the sources, and submissions graded, both with nbgrader.

    python -m genlib.book.assignments release [NAME]
    python -m genlib.book.assignments demo [NAME]
    python -m genlib.book.assignments grade SUBMISSIONS COURSE [--name NAME] [--overlay FOLDER] [--due MOMENT]
        [--timeout SECONDS]
    python -m genlib.book.assignments totals COURSE

SUBMISSIONS holds a folder for each student, and in it NAME.ipynb for each sheet; COURSE is where nbgrader keeps its
gradebook, made if need be. NAME picks one sheet in place of all. Files that are no submission are listed, with exit
code 1.
"""

import argparse
import csv
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from genlib.book.sheets import HOME, ROOT, checked, marks, read, replace_cells, sheets
from genlib.book.submissions import collect, for_spreadsheets, late, moment, read_submission, rebuild

__all__ = [
    "example",
    "grade",
    "grades",
    "lms_table",
    "main",
    "release",
]

EXAMPLES = ("right", "blank", "hard-coded")
TIMEOUT = 60  # seconds a cell
STUDENT = re.compile(r"""^STUDENT_ID *= *(["']?)(.*?)\1 *(?:#.*)?$""", re.MULTILINE)


def release(names: list[str], into: Path) -> None:
    """Write what students get of these assignments to the folder `into`, all of them or none."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for name in names:
            _write(checked(read(HOME / "source", name), name), course / "source", name)
        api = _nbgrader(course, database=False)
        for name in names:
            _succeed(api.generate_assignment(name), name)
        notebooks = {name: read(course / "release", name) for name in names}
    for name, notebook in notebooks.items():
        _write(notebook, into, name)


def example(kind: str, name: str) -> NotebookNode:
    """One of the three example submissions for an assignment, handed in by a student named like it."""
    if kind == "blank":
        return read(HOME / "release", name)
    notebook, _ = rebuild(read(HOME / "source", name), read(HOME / "release", name))
    if kind == "hard-coded":
        replace_cells(notebook, HOME / "hard_coded" / name, tests=False)
    cell = marks(notebook)["student"]
    cell.source = STUDENT.sub(f'STUDENT_ID = "{kind}"', cell.source)
    return notebook


def grade(
    names: list[str],
    submissions: Path,
    course: Path,
    *,
    overlay: Path | None = None,
    due: str | None = None,
    timeout: int = TIMEOUT,
) -> pd.DataFrame:
    """Grade the submissions to these assignments in the folder `course`, and return `grades` of all that is there.

    Each is rebuilt from its sheet first, see `rebuild`; of several names, those count to which somebody handed in.
    `overlay` holds folders NAME of private tests, see `replace_cells`; what came after `due`, written as
    2026-07-01T23:59+02:00, is remarked on; a cell may run for `timeout` seconds.
    """
    if not _folders(submissions):
        raise ValueError(f"{submissions} holds no folder; it must hold one for each student, named like the student")
    deadline = moment("due", due) if due else None
    if deadline and len(names) > 1:
        raise ValueError(f"due: one moment for {len(names)} assignments; say which is due then with NAME")
    sources = {name: read(HOME / "source", name) for name in names}
    if overlay:
        if unknown := sorted(set(_folders(overlay)) - set(sheets())):
            raise ValueError(f"{overlay} holds {', '.join(unknown)}; its folders must be named like assignments")
        for name in names:
            replace_cells(sources[name], overlay / name, tests=True)
    sources = {name: checked(source, name) for name, source in sources.items()}
    found, unmatched = collect(submissions, sheets())
    there = [name for name, by_student in found.items() if any(by_student.values())]
    names_there = [name for name in names if name in there]
    if not names_there:
        raise ValueError(
            f"{submissions} holds submissions to {', '.join(there) or 'no assignment'}, not to {', '.join(names)}; a "
            "file's name must contain that of its assignment"
        )
    release(names_there, course / "handed_out")  # without the overlay's tests
    api = _nbgrader(course, timeout=timeout)
    for name in names_there:
        _write(sources[name], course / "source", name)
        _succeed(api.generate_assignment(name), name)
        for student, paths in found[name].items():
            log = course / "remarks" / name / f"{student}.json"
            if paths:
                _log(log, **_autograde(api, paths, student, name, deadline))
            elif not log.exists():
                _log(log, graded=False, text=["nothing handed in", *(f"but {file}" for file in unmatched[student])])
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
            cells = marks(read(course / "source", name)).items()
            most = {id: cell.metadata.nbgrader.points for id, cell in cells if cell.metadata.nbgrader.grade}
            points, waiting = dict.fromkeys(most, 0.0), 0.0
            if remarks["graded"]:
                parts = {part.name: part for part in gradebook.find_submission(name, _id(student)).notebooks[0].grades}
                points = {id: parts[id].score for id in most}
                waiting = sum(parts[id].max_score for id in most if parts[id].needs_manual_grade)
            rows.append({"student": student, "assignment": name} | points)
            rows[-1] |= {"points": sum(points.values()), "of": sum(most.values()), "to mark": waiting}
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


def _autograde(api: NbGraderAPI, paths: list[Path], student: str, name: str, deadline: datetime | None) -> dict:
    """Whether nbgrader could grade the first of these files, and what an instructor should know of them."""
    course = Path(api.coursedir.root)
    text = [f"graded {paths[0].name!r}, not {', '.join(repr(path.name) for path in paths[1:])}"] if paths[1:] else []
    try:
        notebook, remarks = rebuild(read_submission(paths[0]), read(course / "handed_out", name))
        _write(notebook, course / "submitted" / _id(student), name)
        text += remarks + (late(paths[0], deadline) if deadline else [])
    except Exception as error:  # whatever is wrong in one file, the others are graded
        return {"graded": False, "text": [*text, f"could not be graded: {type(error).__name__}: {str(error)[:200]}"]}
    outcome = api.autograde(name, _id(student))
    if not outcome["success"]:
        return {"graded": False, "text": [f"could not be graded: {_reason(outcome)}", *text]}
    signed = STUDENT.search(marks(notebook)["student"].source)
    if signed is None or signed[2] != student:
        text.insert(0, "not signed" if signed is None else f"signed {signed[2]!r}")
    return {"graded": True, "text": text}


def _id(student: str) -> str:
    """The student's name in nbgrader, which would look for a pattern where it has one of these characters."""
    return re.sub(r"[*?[]", lambda found: f"%{ord(found[0]):X}", student)


def _reason(outcome: dict) -> str:
    """The first exception in nbgrader's log; those that follow are its own."""
    found = re.search(r"^ *([\w.]*(?:Error|Exception|Invalid)\b.*)$", outcome.get("log", ""), re.MULTILINE)
    return found[1][:200] if found else "nbgrader does not say why"


def _log(path: Path, *, graded: bool, text: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"graded": graded, "text": text}), "utf-8")


def _nbgrader(course: Path, *, database: bool = True, timeout: int = TIMEOUT) -> NbGraderAPI:
    # nbgrader calls `alembic` by name when it makes a gradebook; the one of this Python may not be on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    config = Config()
    config.CourseDirectory.root = str(course.resolve())
    config.GenerateAssignment.no_database = not database
    config.SaveCells.enabled = database
    config.Execute.timeout = timeout
    config.Execute.raise_on_iopub_timeout = False  # else a cell that is slow to stop spoils all others
    config.IgnorePattern.enabled, config.IgnorePattern.pattern = True, "^"  # else a test that warns gets no points
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
    grading.add_argument("--due")
    grading.add_argument("--timeout", type=int, default=TIMEOUT)
    commands.add_parser("totals").add_argument("course", type=_path)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    if options.command == "release":
        release(sheets(options.name), HOME / "release")
    elif options.command == "demo":
        _demo(sheets(options.name), ROOT / "build/grade-demo.csv")
    elif options.command == "totals":
        _print(grades(options.course), options.course)
    else:
        chosen = {key: getattr(options, key) for key in ("overlay", "due", "timeout")}
        table = grade(sheets(options.name), options.submissions, options.course, **chosen)
        _print(table, options.course)
        _, unmatched = collect(options.submissions, sheets())
        if files := [str(Path(student, file)) for student, others in unmatched.items() for file in others]:
            raise ValueError(f"not graded, for want of a student's folder or an assignment's name: {', '.join(files)}")


def _print(table: pd.DataFrame, course: Path) -> None:
    for name, content in (("grades", table), ("lms", lms_table(table))):
        for_spreadsheets(content).to_csv(course / f"{name}.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    print(table.to_string(index=False))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
