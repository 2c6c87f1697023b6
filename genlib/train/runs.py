"""Trainings that ended."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

__all__ = ["Run", "Runs"]


@dataclass(frozen=True)
class Run:
    """A training that ended: `module` (trained, a copy), `initial` (its start), and what happened between.

    `history` has one row a check: step, epoch, seconds, loss, accuracy, and on request test_loss, test_accuracy.
    `converged` says whether the stopping targets were met (True where there were none), `diverged_at` the step at
    which the loss stopped being finite, or None.
    """

    module: nn.Module
    initial: nn.Module
    history: pd.DataFrame
    converged: bool
    steps: int
    seconds: float
    diverged_at: int | None = None


@dataclass(frozen=True)
class Runs(Sequence):
    """The runs of a stack, in the order of its modules."""

    runs: tuple[Run, ...]

    def __getitem__(self, index):
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def modules(self) -> list[nn.Module]:
        """The trained modules."""
        return [run.module for run in self.runs]

    @property
    def converged(self) -> np.ndarray:
        """Which of them met their stopping targets."""
        return np.array([run.converged for run in self.runs])

    @property
    def history(self) -> pd.DataFrame:
        """All histories under one another, with a column `model`."""
        return pd.concat([run.history.assign(model=i) for i, run in enumerate(self.runs)], ignore_index=True)
