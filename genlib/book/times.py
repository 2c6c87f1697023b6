"""How long the chapters took, from the times that their execution left in them, and from the records."""

import json
import os
import platform
from datetime import datetime, timedelta
from pathlib import Path

import nbformat
import pandas as pd
import torch

from genlib import scale
from genlib.book.ledger import SCALES
from genlib.book.repository import chapters
from genlib.book.tables import table

__all__ = ["run_times", "seconds", "times_table"]


def seconds(notebook: nbformat.NotebookNode) -> float | None:
    """How long the notebook's cells took, from the times that its execution left in their metadata; None without."""
    stamps = [
        {key: datetime.fromisoformat(text.replace("Z", "+00:00")) for key, text in cell.metadata.execution.items()}
        for cell in notebook.cells
        if cell.cell_type == "code" and "execution" in cell.metadata
    ]
    took = (stamp["shell.execute_reply"] - stamp["iopub.status.busy"] for stamp in stamps)
    return sum(took, timedelta()).total_seconds() if stamps else None


def run_times(path: Path) -> str:
    """The run time of a chapter at each scale, in words."""
    return "; ".join(f"{name}: {text}" for name, text in _times(path).items())


def times_table(root: Path) -> str:
    """The execution times of all chapters as a table."""
    times = table(
        pd.DataFrame({f"[](<{path.name}>)": _times(path) for path in chapters(root)})
        .T.rename_axis("Chapter")
        .reset_index()
    )
    return f"{times}\n\nThis build is of the scale `{scale.scale()}`, made on {_machine()}."


def _times(path: Path) -> dict[str, str]:
    # Measured at the scale that this book shows; at another one it stands in the record, if there is one.
    found = {each: _recorded(path, each) for each in SCALES}
    found[scale.scale()] = seconds(nbformat.read(path, as_version=4)) or found[scale.scale()]
    return {each: "not measured yet" if time is None else _duration(time) for each, time in found.items()}


def _recorded(path: Path, at: str) -> float | None:
    record = path.parent / f"claims/{path.stem}.{at}.json"
    return json.loads(record.read_text("utf-8"))["environment"].get("seconds") if record.exists() else None


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}, {versions}"


def _duration(time: float) -> str:
    return f"{time:.0f} s" if time < 120 else f"{time / 60:.0f} min"
