"""Make the book's generated parts from the chapters that have just been executed, before Sphinx reads them.

In the folder of executed chapters this writes
- the configuration: execution off, and what depends on the repository's address,
- figures/<name>: every named figure of the chapters, for other pages to show,
- the scoreboard of claims, their counts on the first page, and their criteria without an effect,
- the table of execution times, the catalogue of measures and its short form, the tables of networks that people have,
  the reference of genlib, and the table and figure of the benchmarks,
- each chapter's run time, where its first cell links to that table.
"""

import base64
import json
import math
import os
import platform
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import torch
import yaml

from genlib.book import claims, plots
from genlib.book.catalogue import catalogue_table, cheat_sheet
from genlib.book.families import pages
from genlib.book.ledger import SCALES, ledger
from genlib.book.networks import RECORD
from genlib.book.reference import reference
from genlib.book.repository import chapters
from genlib.book.scoreboard import draw_effects, headline, scoreboard
from genlib.book.simulations import simulations
from genlib.book.tables import table

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests/benchmarks/record.json"
SUFFIXES = {"image/svg+xml": ".svg", "image/png": ".png"}
SLOT = re.compile(r"^% the reference of ([\w.]+) goes here$", re.MULTILINE)
TIMES_LINK = "[execution times](execution_times.md)"


def assemble(root: Path, scale: str, benchmarks: Path = BENCHMARKS) -> None:
    """Fill in the book at `root`, whose chapters were executed at `scale`; `benchmarks` is the record of timings."""
    notebooks = {path: nbformat.read(path, as_version=4) for path in chapters(root)}
    records = _records(root)
    configure(root / "_config.yml")
    _write_figures(notebooks.values(), root / "chapters/figures")
    titles = {path.stem: notebook.cells[0].source.splitlines()[0].lstrip("# ") for path, notebook in notebooks.items()}
    parts = ledger(claims.records(root / "chapters/claims"), claims.records(root / "chapters/claims/fresh"))
    for what, text in scoreboard(titles, parts).items():
        _fill(root / "chapters/scoreboard.md", what, text)
    draw_effects(parts, root / "chapters/figures/effects.svg")
    _fill(root / "chapters/index.md", "the count of claims", headline(parts))
    for what, text in simulations(parts).items():
        _fill(root / "chapters/criteria_simulated.md", what, text)
    _fill(root / "chapters/execution_times.md", "the table of execution times", times_table(notebooks, scale, records))
    _fill(root / "chapters/catalogue.md", "the catalogue", catalogue_table())
    _fill(root / "chapters/cheat_sheet.md", "the cheat sheet", cheat_sheet(ROOT / "chapters"))
    for what, text in pages(json.loads(RECORD.read_text("utf-8"))).items():
        _fill(root / "chapters/networks_that_people_have.md", what, text)
    for page in sorted((root / "chapters").glob("reference_*.md")):
        for module in SLOT.findall(page.read_text("utf-8")):
            _fill(page, f"the reference of {module}", reference(module))
    speed = json.loads(benchmarks.read_text("utf-8"))
    speed["rows"].sort(key=lambda row: (row["kernel"], row["case"]))  # numbered alike in the table and in the figure
    draw_speed(speed["rows"], root / "chapters/figures/speed.svg")
    _fill(root / "chapters/how_fast.md", "the table of speed", speed_table(speed))
    _fill(root / "chapters/how_fast.md", "the table of memory", memory_table(speed["memory"]))
    for path, notebook in notebooks.items():
        title = notebook.cells[0]
        title.source = title.source.replace(TIMES_LINK, run_times(path.stem, notebook, scale, records))
        nbformat.write(notebook, path)


def seconds(notebook: nbformat.NotebookNode) -> float:
    """How long the notebook's cells took, from the times that its execution left in their metadata."""
    stamps = [
        {key: datetime.fromisoformat(text.replace("Z", "+00:00")) for key, text in cell.metadata.execution.items()}
        for cell in notebook.cells
        if cell.cell_type == "code" and "execution" in cell.metadata
    ]
    took = (stamp["shell.execute_reply"] - stamp["iopub.status.busy"] for stamp in stamps)
    return sum(took, timedelta()).total_seconds()


def run_times(chapter: str, notebook: nbformat.NotebookNode, scale: str, records: dict) -> str:
    """The run time of a chapter at each scale, in words."""
    return "; ".join(f"{name}: {text}" for name, text in _times(chapter, notebook, scale, records).items())


def times_table(notebooks: dict, scale: str, records: dict) -> str:
    """The execution times of all chapters as a table."""
    rows = {f"[](<{path.name}>)": _times(path.stem, notebook, scale, records) for path, notebook in notebooks.items()}
    times = table(pd.DataFrame(rows).T.rename_axis("Chapter").reset_index())
    return f"{times}\n\nThis build ran the scale `{scale}` on {_machine()}."


def speed_table(record: dict) -> str:
    """The benchmarks as a table, with what was asked for, and the machine that they ran on."""
    rows = [_speed_row(number, row) for number, row in enumerate(record["rows"], start=1)]
    environment = record["environment"]
    gpu = f"on {environment['gpu']}" if environment["gpu"] else "without a GPU: none was measured, so none is shown"
    machine = f"{environment['machine']}, {environment['cores']} CPU cores of which one was used, {gpu}"
    return (
        f"{table(pd.DataFrame(rows))}\n\n"
        f"Measured on {machine}; Python {environment['python']}, torch {environment['torch']}."
    )


def memory_table(entries: list[dict]) -> str:
    """What was measured of every kernel's memory, and the most that is said of it."""
    rows = [
        {
            "Kernel": f"`{entry['kernel']}`",
            "Parameters": f"{entry['measured'][0]:.1f}",
            "at most": str(entry["at_most"][0]),
            "Activations": f"{entry['measured'][1]:.1f}",
            "at most ": str(entry["at_most"][1]),
        }
        for entry in entries
    ]
    return table(pd.DataFrame(rows))


def _speed_row(number: int, row: dict) -> dict[str, str]:
    error = "" if row["error"] is None else f"<br>error {_short(row['error'])}"
    return {
        "No.": str(number),
        "What is computed": f"`{row['kernel']}`<br>{row['case']}",
        "Against": row["baseline"],
        "Ratio of times": f"{_short(row['ratio'])}{error}",
        "Passes": _short(row["passes"]),
        "Limit": "" if row["limit_passes"] is None else _short(row["limit_passes"]),
        "Asked for": "<br>".join(_asked(row)) or "shown for comparison",
    }


def _asked(row: dict) -> list[str]:
    """What a row was to reach, each with whether it did."""
    asked = [
        (row["at_least"], "a ratio of", lambda least: row["ratio"] >= least),
        (row["error_at_most"], "an error of", lambda most: row["error"] <= most),
        (row["passes_at_most"], "passes, at most", lambda most: row["passes"] <= most),
    ]
    badges = {True: "{bdg-success}`met`", False: "{bdg-danger}`missed`"}
    return [f"{text} {_short(value)} {badges[holds(value)]}" for value, text, holds in asked if value is not None]


def _short(value: float) -> str:
    """Three digits, without an exponent unless the number is small."""
    return f"{value:.1g}" if abs(value) < 0.01 else f"{float(f'{value:.3g}'):,g}"


def draw_speed(rows: list[dict], path: Path) -> None:
    """What each row costs in forward passes, between its limit and its baseline."""
    plots.style()
    figure, ax = plt.subplots(figsize=(plots.WIDTH, 1.2 + 0.24 * len(rows)))
    places = range(1, len(rows) + 1)
    ours = [row["passes"] for row in rows]
    limits = [row["limit_passes"] or math.nan for row in rows]
    usual = [row["passes"] * row["ratio"] for row in rows]
    ax.hlines(places, limits, usual, color=plots.GREY, alpha=0.4, linewidth=1)
    looks = {"the limit": (limits, "|", 2), "genlib": (ours, "o", 0), "the baseline": (usual, "x", 1)}
    for name, (costs, marker, colour) in looks.items():
        ax.scatter(costs, places, marker=marker, color=plots.PALETTE[colour], label=name, s=45, zorder=3)
    ax.set(xscale="log", xlabel="cost (forward passes)", yticks=places)
    ax.set_yticklabels([f"{row['kernel']}  {number}" for number, row in enumerate(rows, start=1)])
    ax.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _times(chapter: str, notebook: nbformat.NotebookNode, scale: str, records: dict) -> dict[str, str]:
    # Measured at the scale that this book shows; at another one it stands in the record, if there is one.
    recorded = {s: records.get((chapter, s), {}).get("environment", {}).get("seconds") for s in SCALES}
    recorded[scale] = seconds(notebook)
    return {s: "not measured yet" if time is None else _duration(time) for s, time in recorded.items()}


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}, {versions}"


def _duration(time: float) -> str:
    return f"{time:.0f} s" if time < 120 else f"{time / 60:.0f} min"


def _records(root: Path) -> dict[tuple[str, str], dict]:
    """The committed records by chapter and scale."""
    paths = (root / "chapters/claims").glob("*.*.json")
    return {tuple(path.stem.split(".")): json.loads(path.read_text("utf-8")) for path in paths}


def _write_figures(notebooks, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for cell in (cell for notebook in notebooks for cell in notebook.cells if cell.cell_type == "code"):
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.outputs if name else ():
            for kind, suffix in SUFFIXES.items():
                if kind in output.get("data", {}):
                    data = output.data[kind]
                    content = data.encode() if suffix == ".svg" else base64.b64decode(data)
                    (folder / name).with_suffix(suffix).write_bytes(content)


def configure(path: Path) -> None:
    """Turn execution off, and what needs the repository's address while there is none; the footer links to it."""
    config = yaml.safe_load(path.read_text("utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    html = config["html"]
    if url := config["repository"]["url"]:
        report = '<span class="report">Open an issue</span>'
        html["extra_footer"] = html["extra_footer"].replace(report, f'<a href="{url}/issues">Open an issue</a>')
    else:
        # The theme takes an empty address for an error rather than for none.
        del config["launch_buttons"]
        html["use_issues_button"] = html["use_repository_button"] = False
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")


def _fill(path: Path, what: str, text: str) -> None:
    marker = f"% {what} goes here\n"
    page = path.read_text("utf-8")
    if page.count(marker) != 1:
        raise ValueError(f"{path.name}: expected the line {marker.strip()!r} exactly once")
    path.write_text(page.replace(marker, text + "\n"), "utf-8")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]), sys.argv[2])
