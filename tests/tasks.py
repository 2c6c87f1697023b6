"""What the sweeps of the tests run: functions of a module that their workers can import."""

import os
import signal
from pathlib import Path

import torch

from genlib import data, models, scale
from genlib.train import Stop, fit_many


def mark(folder: str, name: str) -> bool:
    """Leave a mark, and say whether it was there already."""
    path = Path(folder, name)
    was_there = path.exists()
    path.touch()
    return was_there


def drawn(width, lr, seed):
    return {"value": torch.randn(100, generator=torch.Generator().manual_seed(seed)).sum().item() * width, "rate": lr}


def trained(width, lr, seed):
    """A stack of networks that differ in rate and seed."""
    digits = data.load("digits", train=40, test=20, device="cpu")
    networks = [models.mlp(64, 10, width=width, seed=one) for one in seed]
    runs = fit_many(networks, digits, lr=lr, seed=seed, batch_size=20, stop=Stop(steps=6))
    return [{"loss": run.history.loss.iloc[-1], "converged": run.converged} for run in runs]


def counted(folder, task):
    return {"again": mark(folder, f"task-{task}")}


def fatal_once(folder, task):
    """The third task kills the process that it is in, the first time that it runs."""
    again = mark(folder, f"task-{task}")
    if task == 2 and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"again": again}


def failing(width):
    raise ZeroDivisionError("no such network")


def knobs(task):
    return {"dry": scale.dry_run(), "threads": torch.get_num_threads()}


def clashing(width):
    return {"width": 3}


def short(width, seed):
    return [{"value": 1}]


def nothing(width):
    return None


def listed(width):
    return [width]


def measured(width):
    return {"norm": torch.tensor(2.0) * width, "width_seen": width}
