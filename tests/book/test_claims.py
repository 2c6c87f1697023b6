import json
import math

import numpy as np
import pytest
from scipy import stats

from genlib.book import claims
from genlib.book.claims import Claims, Effect


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    monkeypatch.setattr(claims.scale, "dry_run", lambda: False)
    return Claims("01_test", folder=tmp_path)


def state(chapter, criterion="the effect is positive"):
    return chapter.state("paper.1", "Nets memorize", source="Section 2", criterion=criterion)


def test_interval_is_student_t():
    values = (0.3, 0.1, 0.25, 0.4, 0.2)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert Effect("e", values).interval == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.0, 1.1, 0.9), "reproduced"),
        ((-1.0, -1.1, -0.9), "contradicted"),
        ((-1.0, 1.0, 0.1), "not at this scale"),
        ((0.5, 0.5, 0.5), "reproduced"),
        ((0.0, 0.0, 0.0), "not at this scale"),
    ],
)
def test_the_three_verdicts_of_an_effect(chapter, values, verdict):
    assert state(chapter).decide(values, seeds=range(3)) == verdict


def test_subclaims_that_differ_are_partly_reproduced(chapter):
    claim = state(chapter, {"fits": "accuracy above 0.99", "slower": "log ratio above 0"})
    assert claim.verdict == "open"
    assert claim.decide({"fits": [1.0, 1.1, 1.2], "slower": [-1.0, -1.1, -1.2]}, seeds=range(3)) == "partly"
    assert claim.decide({"fits": [1.0, 1.1, 1.2], "slower": [1.0, 1.1, 1.2]}, seeds=range(3)) == "reproduced"


@pytest.mark.parametrize(
    ("effects", "seeds", "message"),
    [
        ([1.0, math.nan, 1.0], range(3), "not finite"),
        ([1.0, 1.0], range(2), "at least 3 seeds"),
        ([1.0, 1.0, 1.0], range(4), "one a seed"),
        ({"other": [1.0, 1.0, 1.0]}, range(3), "named"),
    ],
)
def test_effects_that_decide_nothing_are_refused(chapter, effects, seeds, message):
    with pytest.raises(ValueError, match=message):
        state(chapter).decide(effects, seeds=seeds)


def test_a_criterion_is_fixed_once(chapter):
    state(chapter)
    with pytest.raises(ValueError, match="stated already"):
        state(chapter)


def test_record_round_trip_and_a_verdict_that_differs(chapter, monkeypatch, tmp_path):
    state(chapter).decide([1.0, 1.1, 0.9], seeds=range(3), figure="fig-x")
    assert "no record" in chapter.check()
    monkeypatch.setenv("GENLIB_RECORD", "1")
    chapter.check()
    monkeypatch.delenv("GENLIB_RECORD")
    assert "1 verdicts are those of the record" in chapter.check()
    entry = json.loads(chapter.path.read_text())["claims"][0]
    keys = {"id", "statement", "source", "criterion", "measured", "interval", "seeds", "verdict", "figure"}
    assert set(entry) >= keys
    assert claims.records(tmp_path).loc[0, ["chapter", "scale", "verdict"]].tolist() == [
        "01_test",
        "small",
        "reproduced",
    ]
    chapter.claims["paper.1"].decide([-1.0, -1.1, -0.9], seeds=range(3))
    with pytest.raises(AssertionError, match=r"paper\.1: recorded reproduced, here contradicted"):
        chapter.check()


@pytest.mark.parametrize(
    ("effects", "agrees"),
    [
        ([0.9, 1.0, 1.1], True),
        ([0.3, 1.0, -0.2], True),  # not at this scale, on an interval around the recorded one
        ([0.0, 0.1, -0.1], False),  # not at this scale, and far from the record
        ([-0.9, -1.0, -1.1], False),
    ],
)
def test_a_verdict_may_differ_only_where_intervals_overlap(chapter, monkeypatch, effects, agrees):
    state(chapter, {"a": "a above 0", "b": "b above 0"}).decide(
        {"a": [0.9, 1.0, 1.1], "b": [1.9, 2.0, 2.1]}, seeds=range(3)
    )
    monkeypatch.setenv("GENLIB_RECORD", "1")
    chapter.check()
    monkeypatch.delenv("GENLIB_RECORD")
    chapter["paper.1"].decide({"a": effects, "b": [1.9, 2.0, 2.1]}, seeds=range(3))
    if agrees:
        assert "verdicts are those of the record" in chapter.check()
    else:
        with pytest.raises(AssertionError, match=r"paper\.1: recorded"):
            chapter.check()


def test_parts_of_other_names_are_another_claim(chapter, monkeypatch):
    state(chapter, {"a": "a above 0"}).decide({"a": [0.9, 1.0, 1.1]}, seeds=range(3))
    monkeypatch.setenv("GENLIB_RECORD", "1")
    chapter.check()
    monkeypatch.delenv("GENLIB_RECORD")
    chapter.claims.clear()
    state(chapter, {"b": "b above 0"}).decide({"b": [0.3, 1.0, -0.2]}, seeds=range(3))
    with pytest.raises(AssertionError, match=r"paper\.1: recorded reproduced, here not at this scale"):
        chapter.check()


def test_a_claim_that_vanished_or_was_left_open_is_noticed(chapter, monkeypatch):
    state(chapter)
    with pytest.raises(ValueError, match="stated, not decided"):
        chapter.check()
    chapter.claims["paper.1"].decide([1.0, 1.1, 0.9], seeds=range(3))
    monkeypatch.setenv("GENLIB_RECORD", "1")
    chapter.check()
    monkeypatch.delenv("GENLIB_RECORD")
    chapter.claims.clear()
    with pytest.raises(AssertionError, match=r"paper\.1"):
        chapter.check()


def test_guard_fails_loudly_but_not_in_a_dry_run(chapter, monkeypatch):
    chapter.guard(True, "all is well")
    with pytest.raises(AssertionError, match="the text says that pigs fly"):
        chapter.guard(False, "pigs fly")
    monkeypatch.setattr(claims.scale, "dry_run", lambda: True)
    chapter.guard(False, "pigs fly")


def test_a_dry_run_records_nothing(chapter, monkeypatch):
    monkeypatch.setattr(claims.scale, "dry_run", lambda: True)
    monkeypatch.setenv("GENLIB_RECORD", "1")
    state(chapter).decide([1.0], seeds=[0])
    chapter.check()
    assert not chapter.path.exists()


def test_table_has_a_row_a_subclaim(chapter):
    state(chapter, {"a": "a above 0", "b": "b above 0"}).decide(
        {"a": [1.0, 2.0, 3.0], "b": [-1.0, 0.0, 1.0]}, seeds=range(3)
    )
    table = chapter.table()
    assert list(table["verdict"]) == ["not at this scale", "not at this scale"]
    assert list(table.index) == [("paper.1", "a"), ("paper.1", "b")]
    assert chapter.table("paper.2").empty
