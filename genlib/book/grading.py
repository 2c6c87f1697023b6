"""nbgrader, run on each submission in a process of its own; and its feedback, without what is hidden from students."""

import functools
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import warnings
from multiprocessing.pool import ThreadPool
from multiprocessing.synchronize import Lock
from pathlib import Path

import joblib
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import ClearOutput, NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from tqdm import tqdm
from traitlets.config import Config

from genlib.book.points import grades, read_remarks, write_remarks
from genlib.book.sheets import marks, read, write
from genlib.book.submissions import late, moment, nbgrader_id, read_submission, rebuild

__all__ = ["STUDENT", "TIMEOUT", "autograde", "feedback", "nbgrader", "succeed"]

TIMEOUT = 60  # seconds a cell
STUDENT = re.compile(r"""^STUDENT_ID *= *(["']?)(.*?)\1 *(?:#.*)?$""", re.MULTILINE)
_cut = functools.partial(re.compile(r"^(.{10000}).+", re.MULTILINE).sub, r"\1 … (cut)")

FORKS = multiprocessing.get_context("forkserver")  # one process imports all this, and each submission gets a copy
FORKS.set_forkserver_preload([__name__])


def autograde(course: Path, jobs: list[tuple], *, timeout: int, workers: int | None) -> None:
    """Grade submissions (assignment, student, files, due), as many at a time as there are workers (None: cores).

    Each has a process and a gradebook of its own, so that it can end none of the others; then its points are merged.
    """
    lock = FORKS.Lock()
    with tempfile.TemporaryDirectory() as folder, ThreadPool(workers or joblib.cpu_count()) as pool:
        before = shutil.copy(course / "gradebook.db", folder)
        done = pool.imap_unordered(lambda job: _alone(job, course.resolve(), before, timeout, lock), jobs)
        list(tqdm(done, total=len(jobs), desc="graded", unit=""))


def _alone(job: tuple, course: Path, before: str, *options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        book = Path(shutil.copy(before, folder))
        process = FORKS.Process(target=_grade, args=(job, course, book, *options), daemon=True)
        process.start()
        process.join()
    if process.exitcode:
        text = [f"could not be graded: it ended the process that graded it, with exit code {process.exitcode}"]
        write_remarks(course, *job[:2], graded=False, text=text)


def _grade(job: tuple, course: Path, book: Path, timeout: int, lock: Lock) -> None:
    """Grade one submission with the gradebook `book`, merge this, and keep what an instructor should know."""
    warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker
    name, student, (path, *others), due = job
    text = [f"graded {path.name!r}, not {', '.join(repr(other.name) for other in others)}"] if others else []
    graded, days, id = False, 0.0, nbgrader_id(student)
    try:
        notebook, remarks = rebuild(read_submission(path), read(course / "handed_out", name))
        write(notebook, course / "submitted" / id, name)
        days, odd = late(path, moment("due", due)) if due else (days, [])
        text += remarks + odd
        succeed(nbgrader(course, book=book, timeout=timeout).autograde(name, id), "nbgrader")
        with lock:
            _merge(book, course / book.name, name, id)
        graded = True
        signed = STUDENT.search(marks(notebook)["student"].source)
        if signed is None or signed[2] != student:
            text.insert(0, "not signed" if signed is None else f"signed {signed[2]!r}")
    except Exception as error:  # whatever is wrong in one file, it is told
        text.insert(0, f"could not be graded: {type(error).__name__}: {str(error)[:200]}")
    write_remarks(course, name, student, graded=graded, text=text, late=days)


def _merge(book: Path, into: Path, name: str, student: str) -> None:
    """Take nbgrader's points and comments on a submission from one gradebook into another, and none given by hand."""
    with Gradebook(f"sqlite:///{book}") as theirs, Gradebook(f"sqlite:///{into}") as ours:
        ours.update_or_create_student(student)
        ours.update_or_create_submission(name, student)
        (notebook,) = theirs.find_submission(name, student).notebooks
        for part in notebook.grades:
            mine = ours.find_grade(part.name, name, name, student)
            mine.auto_score, mine.needs_manual_grade = part.auto_score, part.needs_manual_grade
        for part in notebook.comments:
            ours.find_comment(part.name, name, name, student).auto_comment = part.auto_comment
        ours.db.commit()


def feedback(course: Path) -> int:
    """Write a page for each student and assignment, and count them: answers, points, comments and the penalty.

    They are made from what was handed in, and not from what was graded: they hold no test that students don't have, and
    no output in which an answer could have printed one.
    """
    config = Config()
    config.CourseDirectory.autograded_directory = "submitted"
    config.GenerateFeedback.preprocessors.prepend([ClearOutput])
    api, graded = nbgrader(course, config), [key for key, remarks in read_remarks(course).items() if remarks["graded"]]
    grades(course)  # so that nbgrader finds the penalties
    for name, student in graded:
        succeed(api.generate_feedback(name, nbgrader_id(student)), f"{student}, {name}")
    return len(graded)


def nbgrader(course: Path, config: Config | None = None, *, book: Path | None = None, timeout: int = TIMEOUT):
    """nbgrader on the folder of a course, with a gradebook elsewhere if `book` is given."""
    # It calls `alembic` by name when it makes a gradebook; the one of this Python may not be on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    config = config or Config()
    config.CourseDirectory.root = str(course.resolve())
    config.CourseDirectory.db_url = f"sqlite:///{book or course.resolve() / 'gradebook.db'}"
    config.Execute.timeout = timeout
    config.Execute.raise_on_iopub_timeout = False  # else a cell that is slow to stop spoils all others
    config.IgnorePattern.enabled, config.IgnorePattern.pattern = True, "^"  # else a test that warns gets no points
    config.Execute.extra_arguments = ["--HistoryManager.hist_file=:memory:", "--log-level=ERROR"]
    config.Autograde.autograde_preprocessors.insert(1, CutLines)
    return NbGraderAPI(config=config)


class CutLines(NbGraderPreprocessor):
    """Cuts long lines of outputs: nbgrader limits the lines alone, and a million characters bloat each page."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict, cell_index: int) -> tuple[NotebookNode, dict]:
        for output in cell.get("outputs", []):
            for part in (output, output.get("data", {})):
                part |= {key: _cut(part[key]) for key in ("text", "text/plain", "evalue") if key in part}
            if "traceback" in output:
                output.traceback = [_cut(line) for line in output.traceback]
        return cell, resources


def succeed(outcome: dict, what: str) -> None:
    """Nothing if nbgrader did what it should, else the first exception in its log; those that follow are its own."""
    if not outcome["success"]:
        found = re.search(r"^ *([\w.]*(?:Error|Exception|Invalid)\b.*)$", outcome.get("log", ""), re.MULTILINE)
        raise ValueError(f"{what}: {found[1][:200] if found else 'nbgrader does not say why it failed'}")
