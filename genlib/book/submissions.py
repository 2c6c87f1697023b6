"""Submissions: found whatever their files are called, rebuilt on the sheet, and their tables made safe to open."""

import json
import re
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from genlib.book.sheets import marks

__all__ = ["collect", "for_spreadsheets", "late", "moment", "nbgrader_id", "read_submission", "rebuild"]

STAMP = "timestamp.txt"  # nbgrader's name for the time at which a sheet was handed in


def collect(submissions: Path, names: Sequence[str]) -> tuple[dict[str, dict[str, list[Path]]], dict[str, list[str]]]:
    """The notebooks by assignment and student, the one to grade first, and by student the files that are none of them.

    A file belongs to the assignment whose name it contains, in whatever case and with whatever else, at any depth in a
    student's folder. The files outside of these folders stand under "".
    """
    entries = sorted(path for path in submissions.iterdir() if path.name[0] != ".")
    students = {path: _text(path.name) for path in entries if path.is_dir()}
    found = {name: {student: [] for student in students.values()} for name in names}
    unmatched = {student: [] for student in ("", *students.values())}
    for entry in entries:
        for path in sorted(entry.rglob("*")) if entry in students else [entry]:
            inside = path.relative_to(entry if entry in students else submissions)
            if path.is_dir() or any(part[0] == "." for part in inside.parts) or path.name == STAMP:
                continue
            words = re.sub(r"[\W_]+", "_", path.name.casefold())
            name = max((name for name in names if name.casefold() in words), key=len, default=None)
            if entry in students and name and ".ipynb" in path.name.casefold():
                found[name][students[entry]].append(path)
            else:
                unmatched[students.get(entry, "")].append(_text(str(inside)))
    for name, by_student in found.items():
        for paths in by_student.values():
            paths.sort(key=lambda path: (path.name != f"{name}.ipynb", len(path.parts)))
    return found, unmatched


def read_submission(path: Path) -> NotebookNode:
    """The notebook in a file, whatever Unicode it is written in and with whatever mark before it."""
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells without ids, or with one id twice: `rebuild` gives each its own
        return nbformat.reads(content.decode(json.detect_encoding(content)), as_version=4)


def rebuild(submission: NotebookNode, sheet: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """The sheet as it was handed out, with the answers of a submission and the student's other cells; and remarks.

    Tests and locked cells are the sheet's, with its types, tags and order. A cell of the submission belongs to the cell
    of the sheet with its grade_id, or with its id where it lost its metadata. What else there is follows the cell
    that it followed.
    """
    known, above = marks(sheet), None
    pieces, others = {id: [] for id in known}, {id: [] for id in (None, *known)}
    for number, cell in enumerate(submission.cells):
        id = (cell.metadata.get("nbgrader") or {}).get("grade_id", cell.get("id"))
        if id in known:
            above = above if pieces[id] else id
            pieces[id].append(cell)
        else:
            others[above].append(NotebookNode(cell | {"id": f"other-{number}", "metadata": NotebookNode()}))
    printed = {"", *(cell.source.strip() for cell in sheet.cells)}
    cells, remarks = others[None], {}
    for id, cell in known.items():
        if cell.metadata.nbgrader.solution:
            cell, remark = _answer(cell, pieces[id])
            added = any(other.source.strip() not in printed for other in others[id])
            if added and not remark and cell.source == known[id].source:
                remark = "blank, with other cells below"
        else:
            remark = "" if [piece.source for piece in pieces[id]] == [cell.source] else "put back as handed out"
        cells += [cell, *others[id]]
        remarks.setdefault(remark, []).append(id)
    remarks.pop("", None)
    return NotebookNode(sheet | {"cells": cells}), [f"{remark}: {', '.join(ids)}" for remark, ids in remarks.items()]


def _answer(blank: NotebookNode, pieces: list[NotebookNode]) -> tuple[NotebookNode, str]:
    """The cell of the sheet with the answer that stands in `pieces`, each text once, and what is odd about these."""
    texts = list(dict.fromkeys(piece.source for piece in pieces if piece.source.strip() != blank.source.strip()))
    cell = NotebookNode(blank | {"source": "\n".join(texts) if texts else blank.source})
    if cell.cell_type == "markdown":
        cell.attachments = {name: file for piece in pieces for name, file in piece.get("attachments", {}).items()}
    if not pieces:
        return cell, "missing"
    if len(pieces) == 1:
        return cell, ""
    return cell, "joined from several cells" if len(texts) == len(pieces) else "copied, and the copies left out"


def moment(what: str, text: str) -> datetime:
    """The moment that is written as `2026-07-01T23:59+02:00`, and in no other way."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}[+-][0-9]{2}:[0-9]{2}", text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError(f"{what}: {text!r} is no moment; write the day, the time and its zone as 2026-07-01T23:59+02:00")


def late(path: Path, due: datetime) -> tuple[float, list[str]]:
    """By how many days a notebook was handed in after `due`, as the file timestamp.txt beside it says; and remarks."""
    stamp = path.with_name(STAMP)
    if not stamp.exists():
        return 0.0, [f"no {STAMP} says when it was handed in"]
    try:
        delay = moment(STAMP, stamp.read_text("utf-8").strip()) - due
    except ValueError as error:
        return 0.0, [str(error)]
    return max(0.0, delay / timedelta(days=1)), [f"late by {delay}"] if delay > timedelta(0) else []


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would compute as a formula."""
    formula = re.compile("[=+@\t\r\n＝＋－＠-]")
    return table.map(lambda value: f"'{value}" if isinstance(value, str) and formula.match(value) else value)


def nbgrader_id(student: str) -> str:
    """The student's name in nbgrader, which would look for a pattern where it has one of these characters."""
    return re.sub(r"[*?[]", lambda found: f"%{ord(found[0]):X}", student)


def _text(name: str) -> str:
    """The name of a file or folder, with escapes for bytes that are no UTF-8, as old archives have them."""
    return name.strip().encode("utf-8", "backslashreplace").decode("utf-8")
