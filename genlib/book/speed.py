"""The benchmarks' record as tables and a figure."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from genlib.book import plots
from genlib.book.tables import table

__all__ = ["RECORD", "draw_speed", "memory_table", "speed_table", "timings"]

RECORD = Path(__file__).parents[2] / "tests/benchmarks/record.json"


def timings(path: Path = RECORD) -> dict:
    """The record of timings, its rows numbered alike in the table and in the figure."""
    record = json.loads(path.read_text("utf-8"))
    record["rows"].sort(key=lambda row: (row["kernel"], row["case"]))
    return record


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
