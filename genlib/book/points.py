"""The points of a course: from nbgrader's gradebook, less what lateness costs, and as other systems import them."""

import json
import math
import re
from pathlib import Path

import pandas as pd
from nbgrader.api import Gradebook

from genlib.book.sheets import marks, read
from genlib.book.submissions import moment, nbgrader_id

__all__ = ["canvas", "grades", "moodle", "read_remarks", "rules", "write_remarks"]


def grades(course: Path) -> pd.DataFrame:
    """One row a student and assignment: the points of each part, their sum, what is left to mark by hand, remarks.

    `penalty` is what the days that began since the due date cost by the course's `rules`, and `total` what remains; the
    gradebook is told. A submission that could not be graded has no points, and a remark that says why.
    """
    rows, graded = [], read_remarks(course)
    rate = _rate(rules(course)["penalty"])
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for (name, student), remarks in graded.items():
            cells = marks(read(course / "source", name)).items()
            most = {id: cell.metadata.nbgrader.points for id, cell in cells if cell.metadata.nbgrader.grade}
            of, scores, waiting, penalty = sum(most.values()), dict.fromkeys(most, 0.0), 0.0, 0.0
            if remarks["graded"]:
                (notebook,) = gradebook.find_submission(name, nbgrader_id(student)).notebooks
                parts = {part.name: part for part in notebook.grades}
                scores = {id: parts[id].score for id in most}
                waiting = sum(parts[id].max_score for id in most if parts[id].needs_manual_grade)
                penalty = min(sum(scores.values()), rate * of * math.ceil(remarks["late"]) / 100)
                notebook.late_submission_penalty = penalty
            points = sum(scores.values())
            rows.append({"student": student, "assignment": name} | scores)
            rows[-1] |= {"points": points, "penalty": penalty, "total": points - penalty, "of": of, "to mark": waiting}
            rows[-1] |= {"remarks": "; ".join(remarks["text"])}
        gradebook.db.commit()
    return pd.DataFrame(rows)


def rules(course: Path, due: dict[str, str] | None = None, penalty: str | None = None) -> dict:
    """When each assignment is due and what a day costs that began since: kept with the course, after these."""
    path = course / "rules.json"
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {"due": {}, "penalty": "0%/day"}
    kept = {"due": kept["due"] | (due or {}), "penalty": penalty or kept["penalty"]}
    for text in kept["due"].values():
        moment("due", text)
    if _rate(kept["penalty"]) and not kept["due"]:
        raise ValueError("penalty: no assignment is due yet, so that none is late; grade one with a due date first")
    if due or penalty:
        course.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept), "utf-8")
    return kept


def _rate(rule: str) -> float:
    """How many percent of an assignment's points a day costs."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%/day", rule)
    if not found or float(found[1]) > 100:
        raise ValueError(f"penalty: {rule!r} is no rule; write how much of the points each day costs as 10%/day")
    return float(found[1])


def write_remarks(course: Path, name: str, student: str, *, graded: bool, text: list[str], late: float = 0) -> None:
    """Keep whether a submission could be graded, what is odd about it, and by how many days it was late."""
    path = course / "remarks" / name / f"{student}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"graded": graded, "text": text, "late": late}), "utf-8")


def read_remarks(course: Path) -> dict[tuple[str, str], dict]:
    """What `write_remarks` kept, by assignment and student."""
    paths = sorted(course.glob("remarks/*/*.json"))
    if not paths:
        raise ValueError(f"{course} holds no graded submission; are they in folders STUDENT/NAME.ipynb?")
    return {(path.parent.name, path.stem): json.loads(path.read_text("utf-8")) for path in paths}


def moodle(table: pd.DataFrame) -> pd.DataFrame:
    """The totals as Moodle imports them: first what it knows a student by, then a column for each assignment."""
    wide = table.pivot(index="student", columns="assignment", values="total")
    return wide.rename_axis(columns=None).reset_index(names="ID number")


def canvas(table: pd.DataFrame) -> pd.DataFrame:
    """The totals as Canvas imports them: its columns in its order, and a row with the points of each assignment."""
    of = table.groupby("assignment")["of"].max().to_frame("    Points Possible").T.reset_index(names="ID number")
    wide = pd.concat([of, moodle(table)], ignore_index=True)
    names = wide.pop("ID number")
    login = names.where(names.index > 0, "")
    who = {"Student": names, "ID": "", "SIS User ID": login, "SIS Login ID": login, "Section": ""}
    return pd.DataFrame(who).join(wide)
