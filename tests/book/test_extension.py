"""The generated parts of the book say what the executed chapters and the records say."""

import base64
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from genlib import scale
from genlib.book import claims, criteria, inference
from genlib.book.catalogue import cheat_sheet, words_outside
from genlib.book.claims import Claims, ours, paper, shown
from genlib.book.extension import GENERATED, MARKER, filled, write_figures
from genlib.book.ledger import ledger
from genlib.book.scoreboard import draw_effects, headline
from genlib.book.simulations import simulated
from genlib.book.speed import draw_speed, memory_table, speed_table, timings
from genlib.book.times import seconds
from genlib.measures import CATALOGUE

ROOT = Path(__file__).parents[2]
PIXELS = base64.b64encode(b"pixels").decode()


def _times(start, end):
    stamp = "2026-01-01T00:00:{:06.3f}Z"
    return {"execution": {"iopub.status.busy": stamp.format(start), "shell.execute_reply": stamp.format(end)}}


CLEAR, SLIGHT, AROUND_ZERO = [0.4, 0.5, 0.6], [0.06, 0.2, 0.3], [-0.5, 0.5, 0.1]
NONE, AGAINST = [0.01, -0.02, 0.0], [-1.0, -1.2, -1.1]
DECIDED = {  # by number: parts with what was measured of each
    1: {"": (paper("it rises", smallest=0.1), CLEAR)},
    2: {"fits": (paper("it is 1", smallest=0.1), CLEAR), "slow": (paper("it is more", smallest=0.1), AGAINST)},
    3: {"a": (paper("a", smallest=0.1), NONE), "b": (paper("b", smallest=0.1), AROUND_ZERO)},
    4: {"x": (paper("x", smallest=0.1), SLIGHT), "y": (ours("y", smallest=0.1), AGAINST)},
    5: {"": (shown("it holds"), [1.0, 1.0, 1.0])},
    6: {"alone": (ours("we ask", smallest=0.1), CLEAR), "own": (shown("ours holds", whose="ours"), CLEAR)},
}


@pytest.fixture
def decide(monkeypatch):
    """Writes a record of these claims at one scale, into a folder."""

    def write(folder, decided=DECIDED, at="small", chapter="01_memory"):
        monkeypatch.setenv("GENLIB_SCALE", at)
        monkeypatch.setenv("GENLIB_RECORD", "1")
        of = Claims(chapter, folder=folder)
        for number, parts in decided.items():
            id = f"zhang2017.{number}"
            where = {"source": f"Section {number}", "seeds": scale.seeds(3), "recalled": number == 3}
            named = {name or id: part for name, (part, _) in parts.items()}
            claim = of.state(id, f"$|w|$ grows {number}.", parts=named, **where)
            measured = {name or id: values for name, (_, values) in parts.items()}
            claim.decide(measured, figure="fig-b" if number == 2 else None)
        of.check()
        monkeypatch.delenv("GENLIB_RECORD")
        monkeypatch.delenv("GENLIB_SCALE")

    return write


def _page(root, name):
    """The source of a page as Sphinx gets it."""
    (path,) = (root / "chapters").glob(f"{name}.*")
    return filled(root, name, path.read_text("utf-8"))


def _cells(text):
    """The cells of every row of a page's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def _timing(kernel, **changes):
    row = {"kernel": kernel, "case": "200 samples", "baseline": "a loop", "ratio": 3.14, "at_least": None}
    row |= {"passes": 9.42, "limit_passes": 6.5, "error": None, "error_at_most": None, "passes_at_most": None}
    return row | changes


@pytest.fixture
def root(tmp_path, decide):
    """An executed chapter with a figure, and its record at two scales."""
    (tmp_path / "chapters/claims").mkdir(parents=True)
    pages = ("index", "scoreboard", "criteria_simulated", "execution_times", "how_fast", "catalogue", "cheat_sheet")
    for name in ("_config.yml", *(f"chapters/{page}.md" for page in (*pages, "networks_that_people_have"))):
        shutil.copy(ROOT / name, tmp_path / name)
    figure = {"mystnb": {"figure": {"name": "landing"}}}
    cells = [
        new_markdown_cell("# Memory\nIt takes [execution times](execution_times.md)."),
        new_code_cell("a", metadata=_times(1, 3.5)),
        new_code_cell("b", metadata=_times(4, 5) | figure),
    ]
    cells[2].outputs = [new_output("display_data", data={"image/png": PIXELS})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "chapters/01_memory.ipynb")
    for at, spent in {"small": None, "gpu": 600.0}.items():
        decide(tmp_path / "chapters/claims", at=at)
        path = tmp_path / f"chapters/claims/01_memory.{at}.json"
        record = json.loads(path.read_text())
        record["environment"]["seconds"] = spent
        path.write_text(json.dumps(record))
    return tmp_path


def test_execution_time_is_the_sum_over_cells(root):
    assert seconds(nbformat.read(root / "chapters/01_memory.ipynb", as_version=4)) == 3.5


def test_run_times_are_measured_or_recorded(root):
    title = nbformat.reads(_page(root, "01_memory"), as_version=4).cells[0].source
    assert title.endswith("It takes small: 4 s; gpu: 10 min; paper: not measured yet.")
    row = ["[](<01_memory.ipynb>)", "4 s", "10 min", "not measured yet"]
    assert row in _cells(_page(root, "execution_times"))


def _parts(root):
    return ledger(claims.records(root / "chapters/claims"), claims.records(root / "chapters/claims/fresh"))


def test_the_ledger_has_a_row_a_part(root):
    parts = _parts(root)
    assert len(parts) == 2 * 10
    small = parts[parts["scale"] == "small"].set_index(["id", "name"])
    assert small["tested"].sum() == 6
    assert small.loc[("zhang2017.2", "slow"), ["of_claim", "verdict", "seeds"]].tolist() == [
        "partly",
        "contradicted",
        3,
    ]
    assert parts["again"].isna().all()


def test_corrections_are_over_the_papers_tested_parts_at_one_scale(root):
    parts = _parts(root)
    tested = parts[parts["tested"] & (parts["scale"] == "gpu")]
    p = tested["p"].tolist()
    for column, adjusted in {
        "holm": inference.holm(p),
        "fdr": [min(min(len(p) * q / sum(r <= q for r in p) for q in p if q >= each), 1) for each in p],
    }.items():
        expected = [v if q <= 0.05 else "open" for v, q in zip(tested["verdict"], adjusted, strict=True)]
        assert tested[column].tolist() == expected
    assert (tested["holm"] != tested["verdict"]).any()
    assert parts.loc[~parts["tested"], ["holm", "fdr"]].isna().all(axis=None)


def test_scoreboard_tells_claims_questions_and_facts_apart(root):
    text = _page(root, "scoreboard")
    small = text[text.index("At the scale `small`") : text.index("At the scale `gpu`")]
    assert (
        "**4 claims of the papers**: 1 {bdg-success}`reproduced`, 1 {bdg-warning}`partly`, 1 {bdg-info}`no effect of "
        "interest` {bdg-muted}`open`, 1 {bdg-muted}`open`. They have 6 parts with a criterion each: 2 "
        "{bdg-success}`reproduced`, 1 {bdg-danger}`contradicted`, 1 {bdg-info}`no effect of interest`, "
        "2 {bdg-muted}`open`." in small
    )
    assert "**2 questions of ours**, answered with the same words: 1 {bdg-success-line}`reproduced`, 1 {bdg-" in small
    assert "**2 shown facts**, which hold by a theorem or by construction, 1 of them by one of this book." in small
    assert "tests at once, 2 of the 4 decided parts become open by Holm's rule, and 0 by that of" in small
    assert "generated data" not in text


def test_scoreboard_shows_every_part(root):
    text = _page(root, "scoreboard")
    assert "### Memory, at the scale `gpu`" in text
    assert "**`zhang2017.1`** {bdg-success}`reproduced` $|w|$ grows 1. (Section 1; 3 seeds)" in text
    assert "(Section 3, recalled; 3 seeds)" in text
    assert "(Section 2; 3 seeds) {numref}`fig-b`" in text
    assert "**`zhang2017.6`** $|w|$" in text, "a claim of our questions alone has no verdict"
    assert "\n- *y* (our question): y\n" in text and "\n- *own* (our own): ours holds\n" in text
    assert "3 seeds)\n\n- it rises\n\n" in text
    rows = {row[0]: row[1:] for row in _cells(_page(root, "scoreboard")) if len(row) == 7}
    low, high = inference.bounded_interval(AGAINST)
    measured, smallest, power, verdict, holm, _ = rows["*slow*"]
    assert (measured, smallest, verdict) == (f"-1.1 ({low:.3g} … {high:.3g})", "0.1", "{bdg-danger}`contradicted`")
    assert power.endswith("\u00a0%") and holm in ("same", "open")
    assert rows["*b*"][3] == "{bdg-muted}`open`, too small to see with these seeds"
    assert rows["*y*"][3:] == ["{bdg-danger-line}`contradicted`", "–", "–"]
    assert rows["*own*"][1:] == ["–", "–", "{bdg-primary-line}`shown`", "–", "–"]
    alone = [row for row in _cells(_page(root, "scoreboard")) if len(row) == 6]
    assert "{bdg-primary}`shown`" in [row[3] for row in alone], "a part without a name needs no column for it"


def test_scoreboard_has_a_tile_for_every_claim_question_and_fact(root):
    text = _page(root, "scoreboard")
    tiles = re.findall(r'class="(tile [\w -]+)" href="#(\S+)".*?>(\d+)<span aria-hidden="true">(.+?)</span>', text)
    small = [(look, n, sign) for look, anchor, n, sign in tiles if anchor == f"small-zhang2017-{n}"]
    assert small == [
        ("tile tile-success", "1", "✓"),
        ("tile tile-warning", "2", "◐"),
        ("tile tile-info", "3", "≈○"),
        ("tile tile-muted", "4", "○"),
        ("tile tile-danger tile-ours", "4", "✗"),
        ("tile tile-success tile-ours", "6", "✓"),
        ("tile tile-primary", "5", "⊢"),
        ("tile tile-primary tile-ours", "6", "⊢"),
    ]
    assert len(tiles) == 2 * len(small)
    assert all(text.count(f'<span id="{anchor}"></span>') == 1 for _, anchor, _, _ in tiles)


def test_scoreboard_says_what_came_out_otherwise(root):
    lines = [line for line in _page(root, "scoreboard").splitlines() if line.startswith("- <a")]
    assert [re.search(r"<code>(.*?)</code>", line)[1] for line in lines] == [f"zhang2017.{n}" for n in (2, 3, 4)] * 2
    assert "<code>zhang2017.2</code></a> {numref}`fig-b`: " in lines[0]
    assert re.search(r"grows 2\. \{bdg-danger\}`contradicted` \*slow\*, -1\.1 \(.*\)\.$", lines[0])
    assert "*fits*" not in lines[0] and "*y*" not in lines[2], "parts that were reproduced, and questions of ours"


def test_a_second_record_is_shown_where_there_is_one_and_doubts_a_claim(root, decide):
    other = {number: DECIDED[number] for number in (1, 2)}
    other[1] = {"": (DECIDED[1][""][0], AROUND_ZERO)}
    decide(root / "chapters/claims/fresh", other)
    parts = _parts(root)
    small = parts[parts["scale"] == "small"].set_index(["id", "name"])
    assert small.loc[("zhang2017.1", ""), ["verdict", "again", "of_claim"]].tolist() == ["reproduced", "open", "partly"]
    assert small.loc[("zhang2017.2", "slow"), ["again", "of_claim"]].tolist() == ["contradicted", "partly"]
    assert parts.loc[parts["scale"] == "gpu", "of_claim"].iloc[0] == "reproduced"
    text = _page(root, "scoreboard")
    assert (
        "On generated data 3 parts of the papers were decided a second time, and 1 verdict came out otherwise: " in text
    )
    assert "<code>zhang2017.1</code></a>: reproduced, there open." in text
    rows = {row[0]: row[1:] for row in _cells(_page(root, "scoreboard")) if len(row) == 8}
    assert (rows["*fits*"][-1], rows["*slow*"][-1]) == ("same", "same")
    assert "on generated data open." in text


def test_the_first_page_counts_the_claims(root):
    expected = (
        "At the scale `small` it has put 4 claims of the papers to a test: 1 reproduced, 1 partly, 1 no effect of "
        "interest and open, 1 open. Beside them stand 2 questions of its own, and 2 facts that hold by a theorem"
    )
    assert expected in _page(root, "index")
    assert expected in headline(_parts(root))


def test_the_page_of_simulations_runs_every_tested_criterion(root, decide):
    noise = np.random.default_rng(0).standard_normal((4, 3))
    trend = {"": (paper("it climbs", smallest=0.2), criteria.tau(pd.DataFrame(noise)))}
    decide(root / "chapters/claims", DECIDED | {7: trend})
    page = _page(root, "criteria_simulated")
    rows = {row[0]: row[1:] for row in _cells(page) if len(row) == 7 and row[0].startswith("zhang")}
    assert len(rows) == 9
    found = simulated(_parts(root)).query("scale == 'small'").set_index("id")
    part = found.loc["zhang2017.7"]
    assert (part["kind"], part["seeds"], part["smallest"]) == ("tau", 3, 0.2)
    effects = criteria.tau(pd.DataFrame(noise))
    assert part[["reproduced", "contradicted"]].tolist() == list(inference.rates(effects.simulated(0.0), 0.2))
    assert part["power"] == inference.rates(effects.simulated(0.2), 0.2)[0]
    assert rows["zhang2017.7"][:2] == ["Kendall's τ", "3"]
    assert rows["zhang2017.6 *alone* (ours)"][0] == "one number"
    assert "All 9 tested parts, 2,000 simulated runs each." in page and "Of 8 parts the effect of a seed is one" in page


def test_the_figure_of_effects_is_drawn_and_repeats(tmp_path, decide):
    without_spread = {7: {"": (paper("flat", smallest=0.1), [0.5, 0.5, 0.5])}}
    decide(tmp_path, DECIDED | without_spread)
    for name in ("a.svg", "b.svg"):
        draw_effects(ledger(claims.records(tmp_path)), tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text() and "nan" not in drawn


def test_named_figures_are_written(root):
    stale = root / "chapters/figures/fig-of-before.svg"
    stale.parent.mkdir()
    stale.write_text("<svg/>")
    write_figures(root)
    assert (root / "chapters/figures/landing.png").read_bytes() == b"pixels"
    assert not stale.exists()


@pytest.fixture
def record(tmp_path):
    rows = [
        _timing("trace", at_least=3.0),
        _timing("norm", error=3e-3, error_at_most=2e-3),
        _timing("search", at_least=4.0, passes_at_most=30.0),
        _timing("curve", ratio=1239.6, error=0.0),
    ]
    environment = {"machine": "x86_64", "cores": 4, "gpu": None, "python": "3.11.7", "torch": "2.14.1"}
    path = tmp_path / "record.json"
    memory = [{"group": "outputs", "kernel": "margins", "measured": [1.55, 0.7], "at_most": [2, 1]}]
    path.write_text(json.dumps({"environment": environment, "rows": rows, "memory": memory}))
    return timings(path)


def test_the_table_of_memory_says_what_was_measured_and_what_is_allowed(record):
    assert ["`margins`", "1.6", "2", "0.7", "1"] in _cells(memory_table(record["memory"]))


def test_the_table_of_speed_says_what_was_asked_and_met(record):
    cells, met, missed = _cells(speed_table(record)), "{bdg-success}`met`", "{bdg-danger}`missed`"
    assert ["4", "`trace`<br>200 samples", "a loop", "3.14", "9.42", "6.5", f"a ratio of 3 {met}"] in cells
    asked = {row[1].partition("<br>")[0]: row[-1] for row in cells if len(row) == 7}
    assert asked["`norm`"] == f"an error of 0.002 {missed}"
    assert asked["`search`"] == f"a ratio of 4 {missed}<br>passes, at most 30 {met}"
    assert asked["`curve`"] == "shown for comparison"
    measured = {row[1].partition("<br>")[0]: row[3] for row in cells if len(row) == 7}
    assert (measured["`norm`"], measured["`curve`"]) == ("3.14<br>error 0.003", "1,240<br>error 0")


@pytest.mark.parametrize(("gpu", "text"), [(None, "without a GPU: none was measured"), ("NVIDIA X", "on NVIDIA X")])
def test_the_machine_of_the_timings_is_named(record, gpu, text):
    record["environment"]["gpu"] = gpu
    page = speed_table(record)
    assert f"x86_64, 4 CPU cores of which one was used, {text}" in page
    assert ("none is shown" in page) == (gpu is None)


def test_the_figure_of_speed_is_drawn_and_repeats(tmp_path, record):
    draw_speed(record["rows"], tmp_path / "one.svg")
    draw_speed(record["rows"], tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert b"<svg" in drawn and b"nan" not in drawn
    assert drawn == (tmp_path / "two.svg").read_bytes()


def test_the_committed_timings_fill_the_page(root):
    named = {row[1].partition("<br>")[0].strip("`") for row in _cells(_page(root, "how_fast")) if len(row) == 7}
    assert named >= {row["kernel"] for row in timings()["rows"]}


def test_the_catalogue_has_a_row_for_every_measure(root):
    rows = [row for row in _cells(_page(root, "catalogue")) if len(row) == 2]  # no bar in a formula ends a cell
    assert [row[0].partition("<br>")[0].strip("`") for row in rows[2:]] == list(CATALOGUE)
    bibliography = (ROOT / "chapters/references.bib").read_text("utf-8")
    assert all(f"{{{measure.citation}," in bibliography for measure in CATALOGUE.values())


@pytest.mark.parametrize("name", GENERATED)
def test_each_page_has_a_place_for_each_of_its_generated_parts(name):
    wanted = MARKER.findall((ROOT / f"chapters/{name}.md").read_text("utf-8"))
    assert sorted(wanted) == sorted(GENERATED[name](ROOT))


def test_a_place_for_what_is_not_generated_is_refused(root):
    with pytest.raises(ValueError, match=r"index\.md: nothing is generated as 'the count of cliams'"):
        filled(root, "index", "% the count of claims goes here\n% the count of cliams goes here\n")


def test_a_figure_of_no_executed_chapter_is_a_link_to_it(root):
    page = "```{figure} figures/landing.*\n:name: fig-landing\n\nA caption.\n```\n\nMore.\n"
    assert filled(root, "index", page) == "The figure that belongs here is drawn in [](<01_memory.ipynb>).\n\nMore.\n"
    write_figures(root)
    assert filled(root, "index", page) == page


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (r"\tr H", r"$\tr H$"),
        (r"1/\gamma^2,\ \gamma\text{ the margin}", r"$1/\gamma^2,$ $\gamma$ the margin"),
        (r"\sqrt{a,\ b},\ c", r"$\sqrt{a,\ b},$ $c$"),
        (r"\text{as }w\text{, but }v", r"as $w$ , but $v$"),
        (r"C_{\ell_1\text{-path}}+\sigma,\ \text{so}", r"$C_{\ell_1\text{-path}}+\sigma,$ so"),
    ],
)
def test_the_words_of_a_formula_can_wrap(formula, expected):
    assert words_outside(formula) == expected


def test_the_picture_of_the_readme_is_that_of_the_records(tmp_path):
    draw_effects(_parts(ROOT), tmp_path / "effects.svg")
    drawn, committed = (path.read_text("utf-8") for path in (tmp_path / "effects.svg", ROOT / ".github/scoreboard.svg"))
    assert drawn == committed, "copy _build/html/_images/effects.svg to .github/scoreboard.svg"


def test_the_cheat_sheet_has_a_line_a_measure_with_what_chapter_7_found():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in cheat_sheet(ROOT / "chapters").splitlines()[2:]
    ]
    assert [row[0] for row in rows] == [f"`{name}`" for name in CATALOGUE]
    assert all(len(row) == 5 for row in rows), "a bar in a symbol would make another cell"
    scored = [row for row in rows if row[3]]
    assert len(scored) >= 45
    assert all(-1 <= float(row[3].replace("−", "-")) <= 1 and 0 <= float(row[4] or 0) <= 1 for row in scored)
    assert {row[0].strip("`") for row in scored if not row[4]} <= {n for n, row in CATALOGUE.items() if row.on_request}
