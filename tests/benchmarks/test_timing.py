import dataclasses
import json
from pathlib import Path

import pytest
from timing import Row

RECORD = Path(__file__).with_name("record.json")


def row(**asked):
    measured = {"ratio": 6.0, "at_least": None, "passes": 20.0, "limit_passes": 10.0}
    return Row("kernel", "case", "baseline", **measured | asked)


@pytest.mark.parametrize(
    ("asked", "margin"),
    [
        ({}, float("inf")),
        ({"at_least": 3.0}, 2.0),
        ({"at_least": 8.0}, 0.75),
        ({"at_least": 3.0, "error": 2e-3, "error_at_most": 1e-3}, 0.5),
        ({"at_least": 3.0, "error": 0.0, "error_at_most": 1e-3}, 2.0),
        ({"passes_at_most": 30.0}, 1.5),
    ],
)
def test_a_row_is_as_far_from_failing_as_the_worst_of_what_was_asked(asked, margin):
    assert row(**asked).margin == margin
    assert row(**asked).met == (margin >= 1)


def test_the_record_keeps_three_digits():
    assert row(error=0.0012345, error_at_most=None).entry()["error"] == 0.00123


def test_the_record_is_complete():
    record = json.loads(RECORD.read_text("utf-8"))
    assert set(record["environment"]) == {"machine", "cores", "gpu", "threads", "python", "torch"}
    fields = {field.name for field in dataclasses.fields(Row)}
    assert record["rows"] and all(set(entry) == fields for entry in record["rows"])
