"""The committed records of claims keep the rules that the book states, and its prose says what they say."""

import copy
import json
import re
from pathlib import Path

import pytest
from rules import exceptions, exceptions_faults, record_faults
from scipy import stats

from genlib import scale
from genlib.book import claims, criteria
from genlib.book.claims import Claims, ours, paper, shown
from genlib.book.ledger import ledger
from genlib.book.repository import chapters
from genlib.book.simulations import DRAWS, FALSE, simulated

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
RECORDS = sorted((CHAPTERS / "claims").glob("*.json")) + sorted((CHAPTERS / "claims/fresh").glob("*.json"))
every_record = pytest.mark.parametrize("path", RECORDS, ids=lambda path: str(path.relative_to(CHAPTERS / "claims")))


def _read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def parts():
    return ledger(claims.records(CHAPTERS / "claims"), claims.records(CHAPTERS / "claims/fresh"))


@every_record
def test_record_keeps_the_rules(path):
    faults = list(record_faults(_read(path)))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("folder", ["claims", "claims/fresh"])
def test_small_records_were_made_with_one_genlib(folder):
    made = {path.name: _read(path)["environment"]["genlib"] for path in (CHAPTERS / folder).glob("*.small.json")}
    assert len(set(made.values())) <= 1, f"records of different genlibs, `make record` for all: {made}"


def test_every_chapter_has_a_record_and_every_claim_one_chapter():
    stems = [path.stem for path in chapters(ROOT)]
    assert [path.name.split(".")[0] for path in sorted((CHAPTERS / "claims").glob("*.small.json"))] == stems
    ids = [claim["id"] for path in (CHAPTERS / "claims").glob("*.small.json") for claim in _read(path)["claims"]]
    assert len(ids) == len(set(ids))


def test_a_second_record_has_the_criteria_of_the_first_and_its_genlib():
    again = {path.name for path in (CHAPTERS / "claims/fresh").glob("*.json")}
    assert again == {path.name for path in (CHAPTERS / "claims").glob("0[1-5]_*.json")}
    for name in again:
        first, second = _read(CHAPTERS / "claims" / name), _read(CHAPTERS / "claims/fresh" / name)
        assert first["environment"]["genlib"] == second["environment"]["genlib"], f"{name}: `make record` for both"
        stated = [
            {
                (claim["id"], part): [kept[key] for key in ("criterion", "smallest", "bounds", "whose", "shown")]
                for claim in record["claims"]
                for part, kept in claim["parts"].items()
            }
            for record in (first, second)
        ]
        assert stated[0] == stated[1], name


@every_record
def test_no_criterion_finds_an_effect_where_there_is_none(path):
    chapter, at = path.stem.rsplit(".", 1)
    decided = claims.records(path.parent)
    found = simulated(ledger(decided[(decided["chapter"] == chapter) & (decided["scale"] == at)]))
    most = stats.binom.ppf(1 - 1e-5, DRAWS, FALSE) / DRAWS  # what two thousand draws of 5 % may show by chance
    bad = found[found[["reproduced", "contradicted"]].max(axis=1) > most]
    assert bad.empty, bad[["id", "name", "kind", "reproduced", "contradicted"]].to_string()


def test_what_did_not_reproduce_says_what_the_records_say(parts):
    text = (CHAPTERS / "what_did_not_reproduce.md").read_text("utf-8")
    faults = list(exceptions_faults(text, exceptions(parts)))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", ["chapters/scoreboard.md", "chapters/index.md", "README.md"])
def test_pages_leave_counts_and_claims_to_what_is_generated(page):
    text = (ROOT / page).read_text("utf-8")
    assert re.findall(r"\d+ (?:claims|parts|questions|shown facts)\b|\b\w+20\d\d\.\d+\b", text) == []


# The rules notice what is wrong


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_RECORD", "1")
    monkeypatch.setenv("GENLIB_SEED", "1")
    chapter = Claims("01_test", folder=tmp_path)
    decided = {
        "a": (paper("a", smallest=0.1, bounds=(-1, 1)), criteria.value([0.4, 0.5, 0.6])),
        "b": (ours("b", smallest=0.1), [0.4, -0.5, 0.6]),
        "c": (shown("c"), [1.0, 1.0, 1.0]),
    }
    named = {name: part for name, (part, _) in decided.items()}
    claim = chapter.state("paper.1", "It grows.", source="Figure 2", seeds=scale.seeds(3), parts=named)
    claim.decide({name: values for name, (_, values) in decided.items()})
    chapter.check()
    return _read(chapter.path)


def test_a_faultless_record_has_no_faults(record):
    assert list(record_faults(record)) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda claim: claim.update(source="the paper"), "paper.1: its source 'the paper' names no section"),
        (
            lambda claim: claim.update(seeds=[1000, 1002, 1003]),
            r"paper.1: its seeds \[1000, 1002, 1003\] are not the fir",
        ),
        (lambda claim: claim.update(seeds=[0, 1, 2]), "not the first of block 1"),
        (lambda claim: claim.update(seeds=[1000, 1001, 1002, 1003]), r"paper.1 \(a\): 3 effects for 4 seeds"),
        (
            lambda claim: claim.update(verdict="open"),
            "paper.1: its verdict is 'open', and that of its parts 'reproduced'",
        ),
        (lambda claim: claim["parts"]["b"].update(smallest=None), r"paper.1 \(b\): no smallest effect of interest"),
        (
            lambda claim: claim["parts"]["a"].update(verdict="perhaps"),
            r"paper.1 \(a\): its verdict is 'perhaps', and its effects say 'reproduced'",
        ),
        (
            lambda claim: claim["parts"]["a"].update(verdict="open"),
            "its verdict is 'open', and its effects say 'reprod",
        ),
        (
            lambda claim: claim["parts"]["c"].update(values=[1, 0, 1]),
            r"paper.1 \(c\): it holds by a theorem; .* effect 0",
        ),
        (lambda claim: claim.pop("parts"), "paper.1: without parts"),
        (lambda claim: claim.update(parts={}), "paper.1: without parts"),
        (lambda claim: claim.pop("source"), "paper.1: its source None names no section"),
        (lambda claim: claim["parts"]["a"].pop("smallest"), r"paper.1 \(a\): no smallest effect"),
        (lambda claim: claim["parts"]["a"].update(whose="papers"), r"paper.1 \(a\): whose it is .* 'papers'"),
        (lambda claim: claim["parts"]["a"].update(mean=9.0), r"paper.1 \(a\): its mean is 9.0, and its effects say"),
        (lambda claim: claim["parts"]["a"]["of"].update(quantities=[[9], [9], [9]]), r"paper.1 \(a\): its effects are"),
    ],
)
def test_a_fault_of_a_record_is_found(record, spoil, fault):
    spoilt = copy.deepcopy(record)
    spoil(spoilt["claims"][0])
    assert any(re.match(f".*{fault}", found) for found in record_faults(spoilt))


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("**p.1** (open). Seeds. **q.2** (partly:\ncontradicted, open).", []),
        ("**p.1** (open).", ["q.2: not named, and its record says partly: contradicted, open"]),
        ("**p.1.** Ah. **q.2** (partly: contradicted, open)", ["p.1: followed by (), and its record says (open)"]),
        (
            "**p.1** (no effect of interest)",
            ["p.1: followed by (no effect of interest), and its record says (open)", None],
        ),
        (
            "**p.1** (open) **q.2** (partly: contradicted, open) **p.3** (open)",
            ["p.3: named, and its record does not say that anything came out otherwise"],
        ),
        ("**p.1** (open) **p.1** (open) **q.2** (partly: contradicted, open)", ["p.1: in bold twice"]),
    ],
)
def test_prose_that_contradicts_the_records_is_found(text, faults):
    found = list(exceptions_faults(text, {"p.1": "open", "q.2": "partly: contradicted, open"}))
    assert len(found) == len(faults)
    assert all(fault in (None, said) for fault, said in zip(faults, found, strict=True))


def test_what_a_page_has_to_say_of_each_claim(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIB_RECORD", "1")
    yes, no, unsure = [0.4, 0.5, 0.6], [-0.4, -0.5, -0.6], [0.4, -0.5, 0.1]
    of = {1: (yes, yes), 2: (yes, no), 3: (no, unsure), 4: (yes, yes)}
    for folder, again in {"claims": {}, "claims/fresh": {4: (yes, unsure)}}.items():
        chapter = Claims("01_test", folder=tmp_path / folder)
        for number, (a, b) in (of | again).items():
            each = {name: paper("it", smallest=0.1) for name in "ab"} | {"c": ours("we", smallest=0.1)}
            claim = chapter.state(f"p.{number}", "It.", source="Table 1", seeds=scale.seeds(3), parts=each)
            claim.decide({"a": a, "b": b, "c": no})
        chapter.check()
    found = exceptions(ledger(claims.records(tmp_path / "claims"), claims.records(tmp_path / "claims/fresh")))
    assert found == {"p.2": "partly: contradicted", "p.3": "contradicted, open", "p.4": "partly: on generated data"}
