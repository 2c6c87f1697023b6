"""This build against an earlier one: each in a process of its own, taking turns, on one thread.

The earlier one comes out of git's history, and runs on the packages of this environment.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Row

__all__ = ["rows"]

EARLIER = "a8b4623"
ROOT = Path(__file__).parents[2]
OTHERWISE = ("top_eigenvalue", "hessian_norm", "log_volume", "sharpness_")  # now on request, or with longer ascents
_R = 10 / (64 + 10)  # of a forward pass of the MLP 64-512-10, what lies beyond the first layer
_S = (64 + 10) / (40 + 64 + 10)  # and of the MLP 40-64-64-10
# What each task has to be faster by, and what its products alone would take, in forward passes.
TASKS = {
    "fit": ("digits, MLP 64-512-10, batch 64", 1.4, 2 + _R),
    "SAM": ("digits, MLP 64-512-10, batch 64, through fit", 1.35, 2 * (2 + _R)),
    "mean 1-SAM": ("parity, d 30, n 100, width 128, through fit", 2.0, 2 + 3 / 31),
    "fit_many, batch 32": ("32 MLPs 40-64-64-10", 1.5, 2 + _S),
    "fit_many, batch 64": ("32 MLPs 40-64-64-10", 1.4, 2 + _S),
    "jacobian_norms, small": ("MLP 40-64-64-10, 500 samples", 3.0, 11.0),
    "jacobian_norms, large": ("MLP 784-512-512-512-10, 1,000 samples", 1.1, 11.0),
    "evaluate": ("a stack of 12 MLPs 40-64-64-10, all rows that both builds compute alike", 1.4, None),
}


class Build:
    """A process that imports genlib from a folder, and runs a task whenever it is told its name."""

    def __init__(self, folder: Path, rows: str):
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), rows]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
        )

    def __enter__(self) -> "Build":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()

    def seconds(self, task: str) -> list[float]:
        """CPU seconds of the task, and of the forward passes that it is measured in."""
        print(task, file=self.process.stdin, flush=True)
        return [float(word) for word in self.process.stdout.readline().split()]


def rows(repeats: int = 7) -> list[Row]:
    """All rows of this file, none where the history does not reach back so far."""
    with tempfile.TemporaryDirectory() as folder:
        tree = subprocess.run(["git", "-C", ROOT, "archive", EARLIER, "genlib"], capture_output=True)
        if tree.returncode:
            print(f"without the build {EARLIER}, which this copy of the repository does not hold")
            return []
        subprocess.run(["tar", "-x", "-C", folder], input=tree.stdout, check=True)
        show = f"import sys; sys.path.insert(0, {folder!r}); from genlib.measures import CATALOGUE; print(*CATALOGUE)"
        known = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.split()
        names = ",".join(name for name in known if not name.startswith(OTHERWISE))
        with Build(Path(folder), names) as before, Build(ROOT, names) as now:
            return [row(task, before, now, repeats) for task in TASKS]


def row(task: str, before: Build, now: Build, repeats: int) -> Row:
    for build in (before, now):  # to warm up
        build.seconds(task)
    times = [(before.seconds(task)[0], *now.seconds(task)) for _ in range(repeats)]
    theirs, own, once = (statistics.median(column) for column in zip(*times, strict=True))
    case, at_least, limit = TASKS[task]
    return Row(task, case, f"build {EARLIER}", theirs / own, at_least, own / once, limit)
