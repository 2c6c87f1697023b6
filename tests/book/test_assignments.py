"""The assignments: releases give nothing away, and marks go to those who solved them."""

import copy
import html
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbgrader.api import Gradebook

from genlib.book.assignments import EXAMPLES, example, grade, main, release
from genlib.book.points import grades
from genlib.book.sheets import HIDDEN, HOME, ROOT, marks, points_table, read, replace_cells, sheets

AUTOMATIC = ("kernel-public", "kernel-hidden", "experiment-public", "experiment-hidden")
BY_HAND = ("question", "proof")
FIRST = sheets()[0]
DUE = "2026-07-01T23:59+02:00"
GRADED = {
    name: EXAMPLES if name == FIRST or os.environ.get("GENLIB_ALL") else ("right", "hard-coded") for name in sheets()
}


def _run(*arguments, **options):
    command = [sys.executable, "-m", "genlib.book.assignments", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def _grade(folder, submissions, name, *options):
    """The table of marks for notebooks, or texts, by student."""
    for student, content in submissions.items():
        path = folder / "submitted" / student / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else nbformat.writes(content), "utf-8")
    main(["grade", *map(str, [folder / "submitted", folder / "course", "--name", name, *options])])
    return pd.read_csv(folder / "course/grades.csv", index_col="student", keep_default_na=False)


def _most(name):
    return {id: cell.metadata.nbgrader.get("points") for id, cell in marks(read(HOME / "source", name)).items()}


def _secrets(notebook):
    """The lines of solutions, of hidden tests and of model answers."""
    for cell in notebook.cells:
        tags = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "markdown" and tags.get("solution"):
            yield from cell.source.splitlines()
        for kind in ("SOLUTION", "HIDDEN TESTS"):
            for part in re.findall(rf"BEGIN {kind}\n(.*?)### END {kind}", cell.source, re.DOTALL):
                yield from part.splitlines()


def test_there_is_an_assignment_for_each_chapter():
    assert sheets() == sorted(path.stem for path in (ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))


def test_releases_are_what_the_sources_give(tmp_path):
    release(sheets(), tmp_path)
    made, committed = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, HOME / "release")
    )
    assert made == committed


@pytest.mark.parametrize("name", sheets())
def test_release_gives_nothing_away(name):
    source = read(HOME / "source", name)
    text = "\n".join(cell.source for cell in read(HOME / "release", name).cells)
    told = "\n".join(cell.source for cell in source.cells if not list(_secrets(nbformat.v4.new_notebook(cells=[cell]))))
    secrets = {line.strip() for line in _secrets(source) if len(line.strip()) > 25 and line.strip() not in told}
    assert len(secrets) > 40
    assert not [line for line in secrets if line in text]
    assert not re.search(r"(?i)BEGIN|rubric", text)
    assert text.count("YOUR ANSWER HERE") == 3  # two cells, and the sentence that names them
    assert "raise NotImplementedError()" in text


@pytest.mark.parametrize("name", sheets())
def test_sheet_is_in_order(name):
    notebook = read(HOME / "source", name)
    points = {id: most for id, most in _most(name).items() if most is not None}
    assert tuple(points) == AUTOMATIC + BY_HAND
    assert sum(points.values()) == 100
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    cells = marks(notebook)
    assert all((HIDDEN in cells[id].source) == id.endswith("hidden") for id in AUTOMATIC)
    for id in BY_HAND:
        rubric = cells[id].source.partition("**Rubric**")[2]
        assert f"({points[id]} points)" in rubric
        assert sum(map(int, re.findall(r"(\d+): ", rubric))) == points[id]
    table = dict(re.findall(r"^\| ([A-D]) \|.*\| (\d+) \|$", notebook.cells[0].source, re.MULTILINE))
    both = [points[f"{part}-public"] + points[f"{part}-hidden"] for part in ("kernel", "experiment")]
    assert list(map(int, table.values())) == [*both, *(points[id] for id in BY_HAND)]
    assert re.search(r"\*\*Time\.\*\* About \d+ minutes", notebook.cells[0].source)


@pytest.mark.parametrize("name", sheets())
def test_marks_go_to_those_who_solved_it(name, tmp_path):
    table = _grade(tmp_path, {kind: example(kind, name) for kind in GRADED[name]}, name)
    most, hidden = _most(name), [id for id in AUTOMATIC if id.endswith("hidden")]
    public = [id for id in AUTOMATIC if id.endswith("public")]
    assert {id: table.loc["right", id] for id in AUTOMATIC} == {id: most[id] for id in AUTOMATIC}
    assert table.loc["right", "to mark"] == sum(most[id] for id in BY_HAND)
    assert (table.loc[table.index == "blank", [*AUTOMATIC, *BY_HAND, "points", "to mark"]] == 0).all(axis=None)
    assert [table.loc["hard-coded", id] for id in public] == [most[id] for id in public]
    assert (table.loc["hard-coded", hidden] == 0).all()
    assert table.remarks.to_dict() == {kind: "not signed" if kind == "blank" else "" for kind in GRADED[name]}
    exported = pd.read_csv(tmp_path / "course/moodle.csv", index_col="ID number")
    assert exported[name].to_dict() == table.total.to_dict() == table.points.to_dict()


def _half_done(student):
    """The blank sheet with the kernel solved, signed by the student."""
    notebook = example("blank", FIRST)
    cells = marks(notebook)
    cells["kernel"].source = marks(read(HOME / "source", FIRST))["kernel"].source
    cells["student"].source = f"STUDENT_ID = {student}"
    return notebook


def _odd_submissions():
    """What students hand in, by student and file."""
    number = _half_done("4711  # my number, no text")
    number.metadata = {}
    yield "4711", "01_memorization (1).ipynb", "\ufeff" + nbformat.writes(number)
    loud = _half_done("'[ab]*'")
    marks(loud)["kernel"].source += """
import logging, sys, warnings
quiet = one_sweep
def one_sweep(*arguments):
    warnings.warn("slow")
    logging.error("slow")
    print("50%", file=sys.stderr)
    print("x" * 1_000_000)
    return quiet(*arguments)"""
    yield "[ab]*", "new/Copy of 01_Memorization.ipynb", loud
    moved = _half_done("'=1+1'")
    first, second = marks(moved)["kernel"], copy.deepcopy(marks(moved)["kernel"])
    lines = first.source.splitlines()
    first.source, second.source = "\n".join(lines[:4]), "\n".join(lines[4:])
    del second["id"]
    at = moved.cells.index(first)
    moved.cells[at + 1 : at + 1] = [second, nbformat.v4.new_code_cell("mine = one_sweep")]
    moved.cells.append(nbformat.v4.new_code_cell("print(mine.__name__)"))
    yield "=1+1", f"{FIRST}.ipynb", moved
    yield "=1+1", f"{FIRST} (2).ipynb", moved
    for student, source in (
        ("endless", "while True:\n    pass"),
        ("quitting", "import os\n\nos._exit(1)"),
        ("killing", "import os\n\nos.kill(os.getppid(), 9)"),
        ("borrowed", 'STUDENT_ID = "somebody else"'),
    ):
        bad = example("blank", FIRST)
        cells = marks(bad)
        cells["student"].source = source
        bad.cells = [cells["student"], cells["kernel-public"]]  # the others were deleted
        yield student, f"{FIRST}.ipynb", bad
    yield "torn", f"{FIRST}.ipynb", '{"cells": ['
    strange = example("blank", FIRST)
    marks(strange)["kernel"].source = 7
    yield "strange", f"{FIRST}.ipynb", strange
    yield "late", "homework.ipynb", "{}"
    yield os.fsdecode(b"M\xfcller"), f"{FIRST}.ipynb", "no notebook"


def test_odd_submissions_are_graded_as_far_as_they_go(tmp_path, capsys):
    for student, file, content in _odd_submissions():
        path = tmp_path / "submitted" / student / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    (tmp_path / "submitted/nothing").mkdir()
    with pytest.raises(ValueError, match=r"^not graded, .*: late/homework.ipynb$"):
        _grade(tmp_path, {}, FIRST, "--timeout", 30, "--workers", 3)
    assert capsys.readouterr().err.count("\n") == 1  # a line of progress
    table = pd.read_csv(tmp_path / "course/grades.csv", index_col="student", keep_default_na=False)
    students = ["4711", "[ab]*", "'=1+1", "endless", "quitting", "killing", "borrowed"]
    students += ["torn", "strange", "late", "nothing"]
    assert sorted(table.index) == sorted([*students, "M\\udcfcller"])
    full = _most(FIRST)["kernel-public"] + _most(FIRST)["kernel-hidden"]
    assert {student: points for student, points in table.points.items() if points} == dict.fromkeys(students[:3], full)
    remarks = table.remarks
    assert remarks["4711"] == remarks["[ab]*"] == ""
    said = f"graded '{FIRST}.ipynb', not '{FIRST} (2).ipynb'; joined from several cells: kernel; "
    assert remarks["'=1+1"] == said + "blank, with other cells below: proof"
    deleted = "put back as handed out: seed, agrees, kernel-hidden, training, experiment-public, experiment-hidden"
    deleted += "; missing: kernel, twins, steps, question, proof"
    assert remarks["endless"] == f"not signed; {deleted}"
    assert remarks["borrowed"] == f"signed 'somebody else'; {deleted}"
    assert remarks["quitting"].startswith("could not be graded: ") and "DeadKernelError" in remarks["quitting"]
    assert remarks["killing"].endswith("ended the process that graded it, with exit code -9")
    for student in ("torn", "strange", "M\\udcfcller"):
        assert remarks[student].startswith("could not be graded: ")
    assert remarks["late"] == "nothing handed in; but homework.ipynb"
    assert remarks["nothing"] == "nothing handed in"
    assert '"\'=1+1"' in (tmp_path / "course/grades.csv").read_text("utf-8")
    outputs = marks(read(tmp_path / "course/autograded/endless", FIRST))["student"].outputs
    assert any(output.get("ename") in ("CellTimeoutError", "KeyboardInterrupt") for output in outputs)
    (loud,) = (tmp_path / "course/autograded").glob(f"*ab*/{FIRST}/{FIRST}.ipynb")
    assert "… (cut)" in loud.read_text("utf-8") and loud.stat().st_size < 500_000
    for folder in (tmp_path / "submitted").iterdir():
        if folder.name not in ("4711", "quitting", "torn"):
            shutil.rmtree(folder)
    again = grade([FIRST], tmp_path / "submitted", tmp_path / "again", timeout=30, workers=1).set_index("student")
    columns = [column for column in table if column != "remarks"]
    assert (again[columns] == table.loc[again.index, columns]).all(axis=None) and len(again) == 3


def test_assignment_that_nobody_handed_in_makes_no_rows_and_an_empty_folder_takes_no_marks(tmp_path):
    (tmp_path / "submitted/ada").mkdir(parents=True)
    (tmp_path / "submitted/bob").mkdir()
    (tmp_path / f"submitted/ada/{FIRST}.ipynb").touch()
    table = grade(sheets(), tmp_path / "submitted", tmp_path / "course").set_index("student")
    assert table.assignment.to_dict() == {"ada": FIRST, "bob": FIRST}
    assert table.remarks["ada"].startswith("could not be graded: NotJSONError")
    assert table.remarks["bob"] == "nothing handed in"
    shutil.move(tmp_path / f"submitted/ada/{FIRST}.ipynb", tmp_path / "submitted/bob")
    again = grade(sheets(), tmp_path / "submitted", tmp_path / "course").set_index("student")
    assert again.remarks.to_dict() == dict.fromkeys(["ada", "bob"], table.remarks["ada"])


def _text(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text("utf-8")))


def test_private_tests_penalty_and_feedback_of_a_course_that_is_graded_again(tmp_path):
    overlay = tmp_path / "overlay"
    shutil.copytree(HOME / "overlay_template", overlay)
    (overlay / FIRST / "experiment-hidden.py").write_text(f"{HIDDEN}\nassert False\n### END HIDDEN TESTS\n")
    (tmp_path / "submitted/right").mkdir(parents=True)
    (tmp_path / "submitted/right/timestamp.txt").write_text("2026-07-02T00:00+02:00")
    nosy = example("right", FIRST)
    nosy.cells.append(nbformat.v4.new_code_cell("print(*In)"))
    late = ("--due", DUE, "--penalty", "10%/day")
    table = _grade(tmp_path, {"right": nosy}, FIRST, "--overlay", overlay, *late)
    assert table.loc["right", "remarks"] == "late by 0:01:00"
    assert table.loc["right", "penalty"] == 10
    assert table.loc["right", "total"] == table.loc["right", "points"] - 10
    assert table.loc["right", "kernel-hidden"] == _most(FIRST)["kernel-hidden"]
    assert table.loc["right", "experiment-hidden"] == 0
    assert "Private tests" in marks(read(tmp_path / "course/autograded/right", FIRST))["kernel-hidden"].source
    with Gradebook(f"sqlite:///{tmp_path / 'course/gradebook.db'}") as gradebook:
        gradebook.find_grade("question", FIRST, FIRST, "right").manual_score = 7
        gradebook.find_comment("question", FIRST, FIRST, "right").manual_comment = "Well seen."
        gradebook.db.commit()
    main(["feedback", str(tmp_path / "course")])
    page = _text(tmp_path / f"course/feedback/right/{FIRST}/{FIRST}.html")
    given = "\n".join(cell.source for cell in (*read(HOME / "release", FIRST).cells, *nosy.cells))
    graded = read(tmp_path / "course/autograded/right", FIRST)
    tests = [marks(notebook)[id].source for notebook in (graded, read(HOME / "source", FIRST)) for id in AUTOMATIC]
    lines = {line.strip() for test in tests for line in test.splitlines() if len(line) > 25}
    hidden = {line for line in lines if line not in given}
    assert len(hidden) > 10 and "Private tests" in str(graded.cells[-1].outputs)
    assert not [line for line in hidden if line in page]
    assert len(lines - hidden) > 2 and all(line in page for line in lines - hidden)
    assert all(line in page for line in marks(nosy)["kernel"].source.splitlines())
    points = table.loc["right", "points"] + 7
    assert "Well seen." in page and "Late submission penalty (Score: -10.0)" in page
    assert f"{FIRST} (Score: {points - 10} / 100.0)" in page
    main(["totals", str(tmp_path / "course"), "--penalty", "100%/day"])
    table = pd.read_csv(tmp_path / "course/grades.csv", index_col="student")
    assert table.loc["right", ["points", "penalty", "total"]].tolist() == [points, points, 0]
    table = _grade(tmp_path, {"right": example("right", FIRST)}, FIRST)  # graded again, with the public tests
    assert table.loc["right", "experiment-hidden"] == _most(FIRST)["experiment-hidden"]
    assert table.loc["right", "question"] == 7
    assert table.loc["right", "remarks"] == "late by 0:01:00" and table.loc["right", "total"] == 0


def test_template_of_the_overlay_fits():
    for folder in (HOME / "overlay_template").iterdir():
        notebook = read(HOME / "source", folder.name)
        before = {id: cell.source for id, cell in marks(notebook).items()}
        after = {id: cell.source for id, cell in marks(replace_cells(notebook, folder, tests=True)).items()}
        assert {id for id in before if before[id] != after[id]} == {path.stem for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("kernel.py", HIDDEN, "no cell of this assignment"),
        ("kernel-hiden.py", HIDDEN, "kernel-hidden.py"),
        ("kernel-hidden.txt", HIDDEN, "no cell of this assignment"),
        ("kernel-hidden.py", "assert True", "students would get these tests"),
    ],
)
def test_overlay_that_does_not_fit_is_refused(tmp_path, file, text, fault):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=fault):
        replace_cells(read(HOME / "source", FIRST), tmp_path, tests=True)


@pytest.mark.parametrize("name", ["08_more", "1", "01_memorization.ipynb"])
def test_unknown_name_is_refused_with_the_names(name):
    with pytest.raises(ValueError, match=", ".join(sheets())):
        sheets(name)


def test_refusal_is_one_line_and_leaves_nothing(tmp_path):
    done = _run("grade", tmp_path, tmp_path / "course", "--name", "08_more")
    assert done.returncode == 1
    assert done.stderr.startswith("NAME is '08_more'") and done.stderr.count("\n") == 1
    assert not done.stdout and not list(tmp_path.iterdir())


def test_folders_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "nobody/.hidden").mkdir(parents=True)
    (tmp_path / "overlay/chapter 1").mkdir(parents=True)
    (tmp_path / "submitted/ada").mkdir(parents=True)
    course = tmp_path / "course"
    for submissions, overlay, fault in (
        ("nowhere", None, "there is no folder"),
        ("nobody", None, "one for each student"),
        ("submitted", "nowhere", "there is no folder"),
        ("submitted", "overlay", "chapter 1"),
        ("submitted", None, f"submitted holds submissions to no assignment, not to {FIRST}"),
    ):
        with pytest.raises(ValueError, match=fault):
            grade([FIRST], tmp_path / submissions, course, overlay=overlay and tmp_path / overlay)
    (tmp_path / f"submitted/ada/{sheets()[1]}.ipynb").touch()
    with pytest.raises(ValueError, match=f"submitted holds submissions to {sheets()[1]}, not to {FIRST}"):
        grade([FIRST], tmp_path / "submitted", course)
    for names, due, fault in (
        ([sheets()[1]], "1 July", "due: '1 July' is no moment"),
        (sheets(), DUE, "due: one moment for 7"),
    ):
        with pytest.raises(ValueError, match=fault):
            grade(names, tmp_path / "submitted", course, due=due)
    assert not course.exists()
    with pytest.raises(ValueError, match="no graded submission"):
        grades(tmp_path / "submitted")
    assert [path.name for path in (tmp_path / "submitted").iterdir()] == ["ada"]


@pytest.mark.parametrize("command", [("grade", "", ""), ("totals", "")])
def test_folder_that_is_not_given_is_asked_for(command, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert "give SUBMISSIONS= and COURSE=" in capsys.readouterr().err


def test_make_names_the_targets_that_the_pages_name():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in ("assignments_for_instructors", "assignments_for_students"):
        text = (ROOT / f"chapters/{page}.md").read_text("utf-8")
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert re.search(rf"(?m)^{target}:", makefile), f"{page}: make {target}"


def test_instructors_see_the_points():
    assert points_table() in (ROOT / "chapters/assignments_for_instructors.md").read_text("utf-8")


def test_contents_list_releases_and_nothing_else():
    contents = (ROOT / "_toc.yml").read_text("utf-8")
    listed = re.findall(r"file: (chapters/assignments/\S+)", contents)
    assert listed == [f"chapters/assignments/release/{name}/{name}" for name in sheets()]
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert any(Path(f"{path}.ipynb").match(config["execute"]["exclude_patterns"][0]) for path in listed)
    assert "chapters/assignments/source" in config["exclude_patterns"]


@pytest.mark.parametrize(("dry", "left_out"), [("0", ["release/*"]), ("1", ["release/*", "source/*"])])
def test_dry_runs_leave_the_sources_out(monkeypatch, dry, left_out):
    monkeypatch.setenv("GENLIB_DRY_RUN", dry)
    assert runpy.run_path(str(HOME / "conftest.py"))["collect_ignore_glob"] == left_out


def test_container_copies_what_is_there_and_runs_without_rights():
    lines = (HOME / "Dockerfile").read_text("utf-8").splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    assert "requirements.txt" in copied and all((ROOT / source).exists() for source in copied)
    assert lines.index("USER grader") > max(i for i, line in enumerate(lines) if line.startswith("RUN"))
    page = (ROOT / "chapters/assignments_for_instructors.md").read_text("utf-8")
    (call,) = re.findall(r"docker run (?:.*\\\n)*.*", page)
    assert all(option in call for option in ("--network none", "--read-only", "submissions:ro", "overlay:ro"))
