"""Submissions: each is found, and rebuilt from the sheet, whatever its student did to it; who reads of it is safe."""

import copy
from datetime import UTC, datetime

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from genlib.book.sheets import HOME, checked, marks, read, sheets
from genlib.book.submissions import collect, for_spreadsheets, late, moment, read_submission, rebuild

FIRST, SECOND = sheets()[:2]


def _cell(make, id, source, **options):
    tags = {"grade_id": id, "grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3}
    return make(source, id=id, metadata={"nbgrader": tags | options})


SHEET = new_notebook(
    cells=[
        new_markdown_cell("# Title", id="text"),
        _cell(new_code_cell, "kernel", "def f(x):\n    raise NotImplementedError()", solution=True),
        _cell(new_code_cell, "given", "x = 3", locked=True),
        _cell(new_code_cell, "test", "assert f(x) == 9", locked=True, grade=True, points=5),
        _cell(new_markdown_cell, "proof", "YOUR ANSWER HERE", solution=True, grade=True, points=10),
        new_markdown_cell("The end.", id="end"),
    ]
)
ANSWERS = {"kernel": "def f(x):\n    y = x * x\n    return y", "proof": "By induction."}


def _submission(*changes):
    """What a student hands in who has solved the sheet, after these changes of the list of its cells."""
    notebook = copy.deepcopy(SHEET)
    for id, answer in ANSWERS.items():
        marks(notebook)[id].source = answer
    for change in changes:
        change(notebook.cells)
    return notebook


def _split(cells):
    second = copy.deepcopy(cells[1])
    cells[1].source, second.source = "def f(x):\n    y = x * x", "    return y"
    cells.insert(2, second)


def _copy_of_the_blank(cells):
    cells.insert(1, copy.deepcopy(SHEET.cells[1]))


def _copy_at_the_end(cells):
    cells.append(copy.deepcopy(cells[1]))


def _lose_metadata(cells):
    for cell in cells:
        cell.metadata = NotebookNode()


def _lose_ids(cells):
    for cell in cells:
        del cell["id"]


def _answer_below(cells):
    cells[4].source = "YOUR ANSWER HERE"
    cells.insert(5, new_markdown_cell("By induction."))


def _change_the_tests(cells):
    cells[3].source = "assert True"
    cells[3].metadata.nbgrader |= {"points": 100, "locked": False, "solution": True}
    del cells[2]


def _change_types(cells):
    cells[4] = new_code_cell(cells[4].source, metadata=cells[4].metadata)
    cells[3] = new_markdown_cell(cells[3].source, metadata=cells[3].metadata)


def _move_the_test_up(cells):
    cells.insert(1, cells.pop(3))


def _use_other_tags(cells):
    other = copy.deepcopy(cells[1])
    other.metadata.nbgrader.grade_id = "of another sheet"
    other.metadata.tags = ["skip-execution"]
    cells.append(other)
    cells.append(new_code_cell("1", metadata={"nbgrader": {}}))
    cells.append(new_code_cell("2", metadata={"nbgrader": None}))


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ([], []),
        ([_split], ["joined from several cells: kernel"]),
        ([_copy_of_the_blank], ["copied, and the copies left out: kernel"]),
        ([_copy_at_the_end], ["copied, and the copies left out: kernel"]),
        ([_lose_metadata], []),
        ([_lose_ids], []),
        ([_change_the_tests], ["put back as handed out: given, test"]),
        ([_change_types], []),
        ([_move_the_test_up], []),
        ([_use_other_tags], []),
        ([_lose_ids, _split, _move_the_test_up], ["joined from several cells: kernel"]),
    ],
)
def test_what_a_student_did_to_the_cells_costs_nothing(changes, remarks):
    rebuilt, said = rebuild(_submission(*changes), SHEET)
    nbformat.validate(rebuilt)
    assert said == remarks
    cells = marks(rebuilt)
    assert {id: cell.source for id, cell in cells.items()} == {id: c.source for id, c in marks(SHEET).items()} | ANSWERS
    assert not any("tags" in cell.metadata for cell in rebuilt.cells)


def test_answers_that_are_not_there_are_told():
    rebuilt, said = rebuild(_submission(_lose_metadata, _lose_ids), SHEET)
    assert said == ["missing: kernel, proof", "put back as handed out: given, test"]
    assert [cell.source for cell in rebuilt.cells[:6]] == [cell.source for cell in _submission().cells]
    assert rebuild(_submission(_answer_below), SHEET)[1] == ["blank, with other cells below: proof"]
    assert rebuild(SHEET, SHEET)[1] == []
    with_empty_cell = new_notebook(cells=[*SHEET.cells, new_code_cell("\n")])
    assert rebuild(with_empty_cell, SHEET)[1] == []


def test_pictures_of_an_answer_stay():
    submission = _submission()
    picture = {"proof.png": {"image/png": "aGFsbG8="}}
    marks(submission)["proof"].attachments = picture
    assert marks(rebuild(submission, SHEET)[0])["proof"].attachments == picture


@given(st.lists(st.integers(0, 8), max_size=14))
def test_rebuilt_is_the_sheet_with_all_that_is_the_students(chosen):
    pool = [*_submission().cells, *(new_code_cell(f"mine = {i}") for i in range(3))]
    submission = NotebookNode(SHEET | {"cells": [copy.deepcopy(pool[number]) for number in chosen]})
    before = copy.deepcopy(submission)
    rebuilt, _ = rebuild(submission, SHEET)
    assert submission == before
    nbformat.validate(rebuilt)
    known = marks(SHEET)
    assert list(marks(rebuilt)) == list(known)
    for id, cell in marks(rebuilt).items():
        answered = cell.metadata.nbgrader.solution and any(pool[number].id == id for number in chosen)
        assert cell.source == (ANSWERS[id] if answered else known[id].source)
        assert (cell.cell_type, cell.metadata) == (known[id].cell_type, known[id].metadata)
    others = [cell.source for cell in rebuilt.cells if "nbgrader" not in cell.metadata]
    assert sorted(others) == sorted(cell.source for cell in submission.cells if "nbgrader" not in cell.metadata)
    numbers = [number for number in chosen if number in range(1, 5)]
    if numbers == sorted(set(numbers)):  # nothing copied, nothing moved: all is where it was
        sources = iter(cell.source for cell in rebuilt.cells)
        assert all(cell.source in sources for cell in submission.cells)


@pytest.mark.parametrize("name", sheets())
def test_solved_sheets_come_out_as_they_are(name):
    sheet = read(HOME / "release", name)
    assert rebuild(sheet, sheet)[1] == []
    rebuilt, said = rebuild(read(HOME / "source", name), sheet)
    assert said == ["put back as handed out: kernel-hidden, experiment-hidden"]
    for cell, given_out in zip(rebuilt.cells, sheet.cells, strict=True):
        answer = "nbgrader" in cell.metadata and cell.metadata.nbgrader.solution
        assert (cell.source == given_out.source) != answer


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_submission_is_read_in_any_unicode(tmp_path, encoding):
    notebook = _submission(lambda cells: cells.append(new_markdown_cell("Größe")))
    (tmp_path / "sheet.ipynb").write_bytes(nbformat.writes(notebook).encode(encoding))
    assert read_submission(tmp_path / "sheet.ipynb") == notebook


def test_files_are_found_whatever_they_are_called(tmp_path):
    names = {
        "ada": ["01_memorization.ipynb", "a/b/01_memorization.ipynb", "01_memorization (1).ipynb"],
        "bob": ["Copy of 01_Memorization.ipynb", ".ipynb_checkpoints/01_memorization.ipynb", "timestamp.txt"],
        "cy ": ["cy_4711_01-memorization-2.ipynb.txt", "02 Norms and margins.ipynb"],
        "dan": ["homework.ipynb", "01_memorization.pdf", "new/proof.png"],
        "eve": [],
        ".git": ["01_memorization.ipynb"],
    }
    for student, files in names.items():
        (tmp_path / student).mkdir()
        for file in files:
            (tmp_path / student / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / student / file).touch()
    (tmp_path / "01_memorization_fay.ipynb").touch()
    found, unmatched = collect(tmp_path, sheets())
    relative = {student: [str(path.relative_to(tmp_path)) for path in paths] for student, paths in found[FIRST].items()}
    assert relative == {
        "ada": [f"ada/{file}" for file in ("01_memorization.ipynb", "a/b/01_memorization.ipynb")]
        + ["ada/01_memorization (1).ipynb"],
        "bob": ["bob/Copy of 01_Memorization.ipynb"],
        "cy": ["cy /cy_4711_01-memorization-2.ipynb.txt"],
        "dan": [],
        "eve": [],
    }
    assert [student for student, paths in found[SECOND].items() if paths] == ["cy"]
    assert {student: files for student, files in unmatched.items() if files} == {
        "": ["01_memorization_fay.ipynb"],
        "dan": ["01_memorization.pdf", "homework.ipynb", "new/proof.png"],
    }


@pytest.mark.parametrize(
    "text",
    [
        "2026-07-01 23:59+02:00",
        "2026-07-01T23:59",
        "2026-07-01T23:59+0200",
        "2026-07-01T23:59 +02:00",
        "2026-07-01T11:59 PM+02:00",
        "2026-07-01T23:59Z",
        "2026-07-01T23:59:00+02:00",
        "2026-02-30T23:59+02:00",
        "2026-07-01",
        "٢٠٢٦-07-01T23:59+02:00",
        "1.7.2026",
        "",
    ],
)
def test_moment_that_could_be_misread_is_refused(text):
    with pytest.raises(ValueError, match=r"^due: .* write the day, .* as 2026-07-01T23:59\+02:00$"):
        moment("due", text)


def test_what_is_late_is_told(tmp_path):
    due = moment("due", "2026-07-01T23:59+02:00")
    assert due == datetime(2026, 7, 1, 21, 59, tzinfo=UTC)
    path, stamp = tmp_path / "sheet.ipynb", tmp_path / "timestamp.txt"
    assert late(path, due) == (0, ["no timestamp.txt says when it was handed in"])
    for text, expected in (
        ("2026-07-01T21:59+00:00\n", (0, [])),
        ("2026-06-01T21:59+00:00\n", (0, [])),
        ("2026-07-02T00:00+02:00", (1 / 1440, ["late by 0:01:00"])),
        ("2026-07-01T23:59-02:00", (4 / 24, ["late by 4:00:00"])),
        ("2026-07-03T23:59+02:00", (2, ["late by 2 days, 0:00:00"])),
    ):
        stamp.write_text(text)
        assert late(path, due) == expected
    stamp.write_text("yesterday")
    days, (said,) = late(path, due)
    assert days == 0 and said.startswith("timestamp.txt: 'yesterday' is no moment")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-ada", "@ada", "\t=1", "＝1"])
def test_names_are_no_formulas(name):
    table = pd.DataFrame({"student": [name, "ada", "O'Hara", "7"], "points": [-1.0, 2.0, 3.0, 4.0]})
    assert for_spreadsheets(table).student.tolist() == [f"'{name}", "ada", "O'Hara", "7"]
    assert for_spreadsheets(table).points.tolist() == table.points.tolist()


@pytest.mark.parametrize(
    ("test", "refused"),
    [
        ("assert f(x) == 9", False),
        ("score = 3\nfor _ in range(3):\n    score", False),
        ("%precision 3\nassert f(x) == 9", False),
        ("2.5", False),
        ("float(max(0, 5 * np.mean(right)))", False),
        ("5 * np.mean(right)", True),
        ("float(5 * np.mean(right))", True),  # nbgrader gives full points for nan and for -1
        ("assert f(x) == 9\nTrue", True),
        ("score", True),
    ],
)
def test_sheet_whose_test_ends_in_a_value_is_refused(test, refused):
    sheet = copy.deepcopy(SHEET)
    marks(sheet)["test"].source = test
    if refused:
        with pytest.raises(ValueError, match=r"^sheet: the test test ends in the value of .*float\(max\(0, …\)\)"):
            checked(sheet, "sheet")
    else:
        assert checked(sheet, "sheet") is sheet
