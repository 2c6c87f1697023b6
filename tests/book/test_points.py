"""Points: what lateness costs, and tables as Moodle and Canvas import them."""

import csv

import pandas as pd
import pytest

from genlib.book.points import canvas, moodle, rules

DUE = {"one": "2026-07-01T23:59+02:00"}
TABLE = pd.DataFrame(
    [("007", "one", 20.5, 100.0), ("eve", "one", 0.0, 100.0), ("eve", "two", 50.0, 60.0)],
    columns=["student", "assignment", "total", "of"],
)


def _rows(table, path):
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return list(csv.reader(path.read_text("utf-8").splitlines()))


def test_moodle_gets_a_row_a_student_and_a_column_an_assignment(tmp_path):
    assert _rows(moodle(TABLE), tmp_path / "moodle.csv") == [
        ["ID number", "one", "two"],
        ["007", "20.5", ""],
        ["eve", "0.0", "50.0"],
    ]


def test_canvas_gets_its_columns_in_its_order(tmp_path):
    assert _rows(canvas(TABLE), tmp_path / "canvas.csv") == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "one", "two"],
        ["    Points Possible", "", "", "", "", "100.0", "60.0"],
        ["007", "", "007", "007", "", "20.5", ""],
        ["eve", "", "eve", "eve", "", "0.0", "50.0"],
    ]


def test_rules_are_kept_and_what_is_new_is_put_in(tmp_path):
    assert rules(tmp_path) == {"due": {}, "penalty": "0%/day"} and not list(tmp_path.iterdir())
    rules(tmp_path, DUE, "10%/day")
    later = {"two": "2026-08-01T23:59+02:00"}
    rules(tmp_path, later)
    assert rules(tmp_path) == {"due": DUE | later, "penalty": "10%/day"}
    assert rules(tmp_path, penalty="12.5%/day")["penalty"] == rules(tmp_path)["penalty"] == "12.5%/day"


@pytest.mark.parametrize("rule", ["10", "10%", "10 %/day", "-1%/day", "101%/day", "10%/hour", "١%/day", "1e1%/day"])
def test_rule_that_could_be_misread_is_refused_and_not_kept(tmp_path, rule):
    with pytest.raises(ValueError, match=r"^penalty: .* is no rule; write .* as 10%/day$"):
        rules(tmp_path, DUE, rule)
    with pytest.raises(ValueError, match=r"^penalty: no assignment is due yet"):
        rules(tmp_path, penalty="10%/day")
    with pytest.raises(ValueError, match=r"^due: 'July' is no moment"):
        rules(tmp_path, {"one": "July"})
    assert not list(tmp_path.iterdir())
