"""The record of networks that people have covers the catalogue, is what is measured, and the page says what it says."""

import copy
import itertools
import json
import os
import re

import pytest

from genlib.book.families import GROUPS, ROWS, in_words, outcomes, pages
from genlib.book.networks import ATTENTION, FAMILIES, GATED, RECORD, RECURRENT, measured

EVERY = os.environ.get("GENLIB_ALL") == "1"
FEW = ("Residual MLP", "Vision transformer", "GRU")
PROMISED = {GATED: 55, ATTENTION: 40, RECURRENT: 35}
KEPT = json.loads(RECORD.read_text("utf-8"))


@pytest.fixture
def record():
    return copy.deepcopy(KEPT)


def _valued(entry):
    return sum(what != "refused" for what in outcomes(entry).values())


def _faults(record, generated):
    """Where the generated parts of the page are not what the record says, and the record not of these families."""
    if list(record) != list(FAMILIES):
        yield "its families are others"
    lines = generated["the table of networks"].splitlines()
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    sections = dict(
        re.findall(r":::\{dropdown\} (.*?): \d+ rows\n(.*?):::", generated["the networks one by one"], re.S)
    )
    starts = [ROWS.index(row) for row in GROUPS] + [len(ROWS)]
    for name, entry in record.items():
        found = list(outcomes(entry).values())
        family = FAMILIES.get(name)
        if family is None or (entry["code"], entry["kind"]) != (family.code, family.kind):
            yield f"{name}: it was built otherwise"
        for (first, last), cell in zip(itertools.pairwise(starts), cells[name], strict=True):
            said = dict(re.findall(r'aria-label="(.*?)".*?;(\d+)', cell))
            counts = {"whole network": "applies", "part of it": "part", "refused": "refused"}
            if {key: found[first:last].count(what) for key, what in counts.items()} != {
                key: int(said.get(key, 0)) for key in counts
            }:
                yield f"{name}: its table says {said}"
        named = re.findall(r"`(\w+)`", sections[name])
        if sorted(set(named) & set(ROWS)) != sorted(row for row in ROWS if row not in entry["applies"]):
            yield f"{name}: its section names other rows"
        if entry["code"] not in sections[name] or f"{entry['parameters']:,} parameters" not in sections[name]:
            yield f"{name}: its section says that it was built otherwise"
        if f"{sum(what != 'refused' for what in found)} rows\n" not in generated["the networks one by one"]:
            yield f"{name}: its section counts other rows"


def test_the_page_says_what_the_record_says(record):
    generated = pages(record)
    assert list(_faults(record, generated)) == []
    least = min(record, key=lambda name: _valued(record[name]))
    assert f"{_valued(record[least])} ({least})" in generated["the summary of networks"]
    for entry in record.values():
        for reason in [*entry["part"], *entry["refused"]]:
            assert in_words(reason)[0] in generated["the commonest refusals"]


def _one_row_refused(record):
    row = record["MLP"]["applies"].pop()
    record["MLP"]["refused"]["no reason"] = [row]


def _another_size(record):
    record["GRU"]["parameters"] += 1


def _built_otherwise(record):
    record["LSTM"]["code"] = "Recurrent(nn.GRU(4, 8, batch_first=True), 3)"


def _one_family_less(record):
    del record["BERT"]


@pytest.mark.parametrize("plant", [_one_row_refused, _another_size, _built_otherwise, _one_family_less])
def test_a_page_of_another_record_is_found(record, plant):
    generated = pages(record)
    plant(record)
    assert list(_faults(record, generated))


def test_a_record_of_other_rows_is_refused(record):
    record["MLP"]["applies"].remove("l2")
    with pytest.raises(ValueError, match=r"lacks or adds \['l2'\]; write it anew"):
        pages(record)


def test_a_reason_without_words_is_refused(record):
    _one_row_refused(record)
    with pytest.raises(ValueError, match="no plain words for the reason 'no reason'"):
        pages(record)


def test_the_groups_begin_at_rows_of_the_catalogue():
    assert list(GROUPS) == [row for row in ROWS if row in GROUPS] and next(iter(GROUPS)) == ROWS[0]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.kind in PROMISED])
def test_as_many_rows_have_a_value_as_were_promised(name):
    assert _valued(KEPT[name]) >= PROMISED[FAMILIES[name].kind], KEPT[name]["refused"]


@pytest.mark.parametrize("name", FAMILIES if EVERY else FEW)
def test_the_record_is_what_is_measured(name):
    pytest.importorskip(FAMILIES[name].package)
    found = measured(name)
    assert outcomes(found) == outcomes(KEPT[name])
    assert found["parameters"] == KEPT[name]["parameters"]
