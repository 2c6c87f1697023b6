"""The generated parts of the book say what the executed chapters and the records say."""

import base64
import json
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from assemble import assemble, seconds
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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


@pytest.fixture
def root(tmp_path):
    """An executed chapter with a figure, and its record at two scales."""
    (tmp_path / "chapters/claims").mkdir(parents=True)
    for name in ("_config.yml", "chapters/scoreboard.md", "chapters/execution_times.md"):
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
    lines = (root / "chapters/execution_times.md").read_text().splitlines()
    assert row in [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_scoreboard_counts_and_lists(root):
    assemble(root, "small")
    text = " ".join((root / "chapters/scoreboard.md").read_text().split())
    assert "{bdg-success}`reproduced` | 2 |" in text
    assert "{bdg-danger}`contradicted` | 0 |" in text
    assert "## Memory, at the scale `gpu`" in text
    assert r"{bdg-success}`reproduced`<br>`zhang2017.1`: $\|w\|$ grows (Section 1) | it rises |" in text
    assert "0.5 (0.25 … 0.75)<br>3 seeds" in text
    assert "*slow*: -2 (-3 … -1), contradicted" in text
    assert "{numref}`fig-b`" in text


def test_named_figures_are_written(root):
    assemble(root, "small")
    assert (root / "chapters/figures/landing.png").read_bytes() == b"pixels"


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
