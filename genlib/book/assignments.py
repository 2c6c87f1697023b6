"""The assignments: releases made from the sources, and submissions graded, both with nbgrader.

    python -m genlib.book.assignments release [NAME]
    python -m genlib.book.assignments demo [NAME]
    python -m genlib.book.assignments grade SUBMISSIONS COURSE [--name NAME] [--overlay FOLDER] [--due MOMENT]
        [--penalty 10%/day] [--timeout SECONDS] [--workers NUMBER]
    python -m genlib.book.assignments totals COURSE [--penalty 10%/day]
    python -m genlib.book.assignments feedback COURSE

SUBMISSIONS holds a folder for each student, and in it NAME.ipynb for each sheet; COURSE is where nbgrader keeps its
gradebook, made if need be. NAME picks one sheet in place of all. Files that are no submission are listed, with exit
code 1.
"""

import argparse
import csv
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from genlib.book.grading import STUDENT, TIMEOUT, autograde, feedback, nbgrader, succeed
from genlib.book.points import canvas, grades, moodle, rules, write_remarks
from genlib.book.sheets import HOME, checked, marks, read, replace_cells, sheets, write
from genlib.book.submissions import collect, for_spreadsheets, rebuild

__all__ = ["example", "grade", "main", "release"]

EXAMPLES = ("right", "blank", "hard-coded")


def release(names: list[str], into: Path) -> None:
    """Write what students get of these assignments to the folder `into`, all of them or none."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for name in names:
            write(checked(read(HOME / "source", name), name), course / "source", name)
        api = nbgrader(course, Config({"GenerateAssignment": {"no_database": True}, "SaveCells": {"enabled": False}}))
        for name in names:
            succeed(api.generate_assignment(name), name)
        notebooks = {name: read(course / "release", name) for name in names}
    for name, notebook in notebooks.items():
        write(notebook, into, name)


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
    penalty: str | None = None,
    timeout: int = TIMEOUT,
    workers: int | None = None,
) -> pd.DataFrame:
    """Grade the submissions to these assignments in the folder `course`, and return `grades` of all that is there.

    Each is rebuilt from its sheet first, see `rebuild`; of several names, those count to which somebody handed in.
    `overlay` holds folders NAME of private tests, see `replace_cells`; `due`, written as 2026-07-01T23:59+02:00, and
    `penalty`, written as 10%/day, are kept with the course, see `rules`; a cell may run for `timeout` seconds.
    """
    if not _folders(submissions):
        raise ValueError(f"{submissions} holds no folder; it must hold one for each student, named like the student")
    if due and len(names) > 1:
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
    kept = rules(course, {names[0]: due} if due else None, penalty)
    release(names_there, course / "handed_out")  # without the overlay's tests
    api, jobs = nbgrader(course), []
    for name in names_there:
        write(sources[name], course / "source", name)
        succeed(api.generate_assignment(name), name)
        for student, paths in found[name].items():
            if paths:
                jobs.append((name, student, [path.resolve() for path in paths], kept["due"].get(name)))
            elif not (course / "remarks" / name / f"{student}.json").exists():
                text = ["nothing handed in", *(f"but {file}" for file in unmatched[student])]
                write_remarks(course, name, student, graded=False, text=text)
    autograde(course, jobs, timeout=timeout, workers=workers)
    return grades(course)


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _demo(names: list[str]) -> None:
    """Grade the three example submissions, and print what each part got."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in EXAMPLES:
            (Path(folder) / "submitted" / kind).mkdir(parents=True)
            for name in names:
                nbformat.write(example(kind, name), Path(folder) / "submitted" / kind / f"{name}.ipynb")
        print(grade(names, Path(folder) / "submitted", Path(folder) / "course").to_string(index=False))


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
    grading, totals, pages = map(commands.add_parser, ("grade", "totals", "feedback"))
    grading.add_argument("submissions", type=_path)
    for command in (grading, totals, pages):
        command.add_argument("course", type=_path)
    for option in ("--name", "--due", "--penalty"):
        grading.add_argument(option)
    grading.add_argument("--overlay", type=_path)
    grading.add_argument("--timeout", type=int, default=TIMEOUT)
    grading.add_argument("--workers", type=int)
    totals.add_argument("--penalty")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    if options.command == "release":
        release(sheets(options.name), HOME / "release")
    elif options.command == "demo":
        _demo(sheets(options.name))
    elif options.command == "totals":
        rules(options.course, penalty=options.penalty)
        _print(grades(options.course), options.course)
    elif options.command == "feedback":
        print(f"{options.course / 'feedback'} holds {feedback(options.course)} pages, in a folder for each student")
    else:
        chosen = {key: getattr(options, key) for key in ("overlay", "due", "penalty", "timeout", "workers")}
        table = grade(sheets(options.name), options.submissions, options.course, **chosen)
        _print(table, options.course)
        _, unmatched = collect(options.submissions, sheets())
        if files := [str(Path(student, file)) for student, others in unmatched.items() for file in others]:
            raise ValueError(f"not graded, for want of a student's folder or an assignment's name: {', '.join(files)}")


def _print(table: pd.DataFrame, course: Path) -> None:
    for name, content in (("grades", table), ("moodle", moodle(table)), ("canvas", canvas(table))):
        for_spreadsheets(content).to_csv(course / f"{name}.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    print(table.to_string(index=False))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
