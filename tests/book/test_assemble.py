"""The generated parts of the book say what the executed chapters and the records say."""

import base64
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from genlib.book import claims
from genlib.book.assemble import BENCHMARKS, assemble, draw_speed, seconds
from genlib.book.catalogue import cheat_sheet, words_outside
from genlib.book.scoreboard import draw_effects
from genlib.measures import CATALOGUE

ROOT = Path(__file__).parents[2]
PIXELS = base64.b64encode(b"pixels").decode()


def _times(start, end):
    stamp = "2026-01-01T00:00:{:06.3f}Z"
    return {"execution": {"iopub.status.busy": stamp.format(start), "shell.execute_reply": stamp.format(end)}}


def _claim(number, verdict, **changes):
    id = f"zhang2017.{number}"
    claim = {"id": id, "statement": "$|w|$ grows", "source": "Section 1", "criterion": "it rises"}
    claim |= {"measured": {id: 0.5}, "interval": {id: [0.25, 0.75]}, "verdicts": {id: verdict}}
    return claim | {"seeds": [0, 1, 2], "verdict": verdict, "figure": None} | changes


def _cells(page):
    """The cells of every row of the page's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]


def _timing(kernel, **changes):
    row = {"kernel": kernel, "case": "200 samples", "baseline": "a loop", "ratio": 3.14, "at_least": None}
    row |= {"passes": 9.42, "limit_passes": 6.5, "error": None, "error_at_most": None, "passes_at_most": None}
    return row | changes


@pytest.fixture
def root(tmp_path):
    """An executed chapter with a figure, and its record at two scales."""
    (tmp_path / "chapters/claims").mkdir(parents=True)
    pages = ("scoreboard", "execution_times", "how_fast", "catalogue", "cheat_sheet")
    for name in ("_config.yml", *(f"chapters/{page}.md" for page in pages)):
        shutil.copy(ROOT / name, tmp_path / name)
    figure = {"mystnb": {"figure": {"name": "landing"}}}
    cells = [
        new_markdown_cell("# Memory\nIt takes [execution times](execution_times.md)."),
        new_code_cell("a", metadata=_times(1, 3.5)),
        new_code_cell("b", metadata=_times(4, 5) | figure),
    ]
    cells[2].outputs = [new_output("display_data", data={"image/png": PIXELS})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "chapters/01_memory.ipynb")
    parts = {"fits": "it is 1", "slow": "it is more"}
    partly = _claim(2, "partly", criterion=parts, measured={"fits": 1, "slow": -2}, figure="fig-b")
    partly |= {"interval": {"fits": [0.5, 1.5], "slow": [-3, -1]}}
    partly |= {"verdicts": {"fits": "reproduced", "slow": "contradicted"}}
    for scale, environment in {"small": {}, "gpu": {"seconds": 600.0}}.items():
        record = {"environment": environment, "claims": [_claim(1, "reproduced"), partly]}
        (tmp_path / f"chapters/claims/01_memory.{scale}.json").write_text(json.dumps(record))
    return tmp_path


def test_execution_time_is_the_sum_over_cells(root):
    assert seconds(nbformat.read(root / "chapters/01_memory.ipynb", as_version=4)) == 3.5


def test_run_times_are_measured_or_recorded(root):
    assemble(root, "small")
    title = nbformat.read(root / "chapters/01_memory.ipynb", as_version=4).cells[0].source
    assert title.endswith("It takes small: 4 s; gpu: 10 min; paper: not measured yet.")
    row = ["[](<01_memory.ipynb>)", "4 s", "10 min", "not measured yet"]
    assert row in _cells(root / "chapters/execution_times.md")


def test_scoreboard_counts_and_lists(root):
    assemble(root, "small")
    text = " ".join((root / "chapters/scoreboard.md").read_text().split())
    assert (
        "At the scale `small` 2 claims were decided: 1 {bdg-success}`reproduced`, 1 {bdg-warning}`partly`. They have 3 "
        "parts, each with a criterion of its own: 2 {bdg-success}`reproduced`, 1 {bdg-danger}`contradicted`." in text
    )
    assert "## Memory, at the scale `gpu`" in text
    assert r"{bdg-success}`reproduced`<br>`zhang2017.1`: $\|w\|$ grows (Section 1) | it rises |" in text
    assert "0.5 (0.25 … 0.75)<br>3 seeds" in text
    assert "*slow*: -2 (-3 … -1), contradicted" in text
    assert "{numref}`fig-b`" in text


def test_scoreboard_has_a_tile_for_every_claim_and_scale(root):
    assemble(root, "small")
    text = (root / "chapters/scoreboard.md").read_text()
    tiles = re.findall(r'class="tile tile-(\w+)" href="#(\S+)".*?>(\d+)<', text)
    expected = [("success", "1"), ("warning", "2")]
    assert tiles == [(look, f"{scale}-zhang2017-{n}", n) for scale in ("small", "gpu") for look, n in expected]
    assert all(text.count(f'<span id="{anchor}"></span>') == 1 for _, anchor, _ in tiles)


def test_scoreboard_says_what_came_out_otherwise(root):
    assemble(root, "small")
    lines = [line for line in (root / "chapters/scoreboard.md").read_text().splitlines() if line.startswith("- ")]
    assert len(lines) == 2, "the part that failed, at each scale"
    assert all(line.endswith("{bdg-danger}`contradicted` *slow*, -2 (-3 … -1).") for line in lines)
    assert all("<code>zhang2017.2</code></a> {numref}`fig-b`: " in line for line in lines)
    assert not any("*fits*" in line for line in lines)


def test_the_figure_of_effects_is_drawn_and_repeats(tmp_path):
    without_spread = _claim(3, "reproduced", interval={"zhang2017.3": [0.5, 0.5]})
    entries = [
        {"chapter": "01_memory", "scale": "small"} | claim for claim in (_claim(1, "reproduced"), without_spread)
    ]
    for name in ("a.svg", "b.svg"):
        draw_effects(pd.DataFrame(entries), tmp_path / name)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_named_figures_are_written(root):
    assemble(root, "small")
    assert (root / "chapters/figures/landing.png").read_bytes() == b"pixels"


@pytest.fixture
def timings(tmp_path):
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
    return path


def test_the_table_of_memory_says_what_was_measured_and_what_is_allowed(root, timings):
    assemble(root, "small", timings)
    assert ["`margins`", "1.6", "2", "0.7", "1"] in _cells(root / "chapters/how_fast.md")


def test_the_table_of_speed_says_what_was_asked_and_met(root, timings):
    assemble(root, "small", timings)
    cells, met, missed = _cells(root / "chapters/how_fast.md"), "{bdg-success}`met`", "{bdg-danger}`missed`"
    assert ["4", "`trace`<br>200 samples", "a loop", "3.14", "9.42", "6.5", f"a ratio of 3 {met}"] in cells
    asked = {row[1].partition("<br>")[0]: row[-1] for row in cells if len(row) == 7}
    assert asked["`norm`"] == f"an error of 0.002 {missed}"
    assert asked["`search`"] == f"a ratio of 4 {missed}<br>passes, at most 30 {met}"
    assert asked["`curve`"] == "shown for comparison"
    measured = {row[1].partition("<br>")[0]: row[3] for row in cells if len(row) == 7}
    assert (measured["`norm`"], measured["`curve`"]) == ("3.14<br>error 0.003", "1,240<br>error 0")


@pytest.mark.parametrize(("gpu", "text"), [(None, "without a GPU: none was measured"), ("NVIDIA X", "on NVIDIA X")])
def test_the_machine_of_the_timings_is_named(root, timings, gpu, text):
    record = json.loads(timings.read_text())
    record["environment"]["gpu"] = gpu
    timings.write_text(json.dumps(record))
    assemble(root, "small", timings)
    page = (root / "chapters/how_fast.md").read_text()
    assert f"x86_64, 4 CPU cores of which one was used, {text}" in page
    assert ("none is shown" in page) == (gpu is None)


def test_the_figure_of_speed_is_drawn_and_repeats(tmp_path, timings):
    rows = json.loads(timings.read_text())["rows"]
    draw_speed(rows, tmp_path / "one.svg")
    draw_speed(rows, tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert b"<svg" in drawn and b"nan" not in drawn
    assert drawn == (tmp_path / "two.svg").read_bytes()


def test_the_committed_timings_fill_the_page(root):
    rows = json.loads(BENCHMARKS.read_text("utf-8"))["rows"]
    assemble(root, "small")
    named = {row[1].partition("<br>")[0].strip("`") for row in _cells(root / "chapters/how_fast.md") if len(row) == 7}
    assert named >= {row["kernel"] for row in rows}


def test_the_catalogue_has_a_row_for_every_measure(root):
    assemble(root, "small")
    rows = [row for row in _cells(root / "chapters/catalogue.md") if len(row) == 2]  # no bar in a formula ends a cell
    assert [row[0].partition("<br>")[0].strip("`") for row in rows[2:]] == list(CATALOGUE)
    bibliography = (ROOT / "chapters/references.bib").read_text("utf-8")
    assert all(f"{{{measure.citation}," in bibliography for measure in CATALOGUE.values())


@pytest.mark.parametrize("url", ["", "https://github.com/owner/name"])
def test_buttons_come_with_the_address(root, url):
    config = yaml.safe_load((root / "_config.yml").read_text())
    config["repository"]["url"] = url
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    assemble(root, "small")
    config = yaml.safe_load((root / "_config.yml").read_text())
    assert config["execute"]["execute_notebooks"] == "off"
    assert ("launch_buttons" in config) == config["html"]["use_issues_button"] == bool(url)
    assert (f'href="{url}/issues"' in config["html"]["extra_footer"]) == bool(url)


def test_a_page_without_its_slot_is_refused(root):
    (root / "chapters/scoreboard.md").write_text("# The Scoreboard\n")
    with pytest.raises(ValueError, match=r"scoreboard\.md"):
        assemble(root, "small")


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


def test_what_did_not_reproduce_names_every_such_claim():
    decided = claims.records(ROOT / "chapters/claims")
    text = (ROOT / "chapters/what_did_not_reproduce.md").read_text("utf-8")
    named = set(re.findall(r"\*\*(\w+\.\d+)\.?\*\*", text))
    assert named == set(decided.loc[decided["verdict"] != "reproduced", "id"])


def test_the_picture_of_the_readme_is_that_of_the_records(tmp_path):
    draw_effects(claims.records(ROOT / "chapters/claims"), tmp_path / "effects.svg")
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
    assert all(-1 <= float(row[3].replace("−", "-")) <= 1 and 0 <= float(row[4]) <= 1 for row in scored)
