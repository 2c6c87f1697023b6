"""What a training is to do: the plan that all its networks share, the job that each has, and when it stops."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genlib import scale
from genlib.data import Dataset
from genlib.network import Params
from genlib.network.losses import Loss, per_sample_loss
from genlib.optimizers import Recipe
from genlib.train.bases import OPTIMIZERS

__all__ = ["Job", "Optimizer", "Plan", "Stop"]

Optimizer = str | Recipe | Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Stop:
    """When training ends: at a training loss and an accuracy (both, where both are given), or at a cap.

    `loss` and `accuracy` are of the whole training set in evaluation mode, looked at every `every` steps (default: once
    an epoch, but not before 10 steps). A network that meets them has converged; `epochs` and `steps` cap the others.
    """

    loss: float | None = None
    accuracy: float | None = None
    epochs: int | None = None
    steps: int | None = None
    every: int | None = None

    def __post_init__(self):
        if self.epochs is None and self.steps is None and self.loss is None and self.accuracy is None:
            raise ValueError("stop never ends training; give at least one of loss, accuracy, epochs and steps")
        for name in ("loss", "accuracy", "epochs", "steps", "every"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"stop.{name} is {value}; it must be positive")
        if self.accuracy is not None and self.accuracy > 1:
            raise ValueError(f"stop.accuracy is {self.accuracy}; it is a share, at most 1")


@dataclass(frozen=True)
class Plan:
    """What all networks of a training share."""

    optimizer: Optimizer
    momentum: float
    batch_size: int | None
    loss: Loss
    schedule: Callable[[float], float] | None
    augment: Callable[[Tensor], Tensor] | None
    project: Callable[[Params], None] | None
    track_test: bool
    checkpoint: str | Path | None

    def __post_init__(self):
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be positive, or None for the full batch")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if not callable(self.base) and self.base not in OPTIMIZERS:
            raise ValueError(
                f"optimizer is {self.optimizer!r}; choose {', '.join(OPTIMIZERS)}, or give a recipe or a function"
            )
        if self.optimizer == "lbfgs" and self.batch_size is not None:
            raise ValueError("optimizer lbfgs needs the full batch; leave batch_size at None")
        per_sample_loss(self.loss)

    @property
    def recipe(self) -> Recipe | None:
        return self.optimizer if isinstance(self.optimizer, Recipe) else None

    @property
    def base(self) -> str | Callable:
        """What makes the steps: a name, a class, or the optimizer of one's own."""
        return self.optimizer.base if self.recipe else self.optimizer

    @property
    def one_by_one(self) -> bool:
        """Whether the steps are those of an optimizer that may not treat every weight alike."""
        return callable(self.base) or self.base == "lbfgs"


@dataclass(frozen=True)
class Job:
    """What each network has of its own."""

    module: nn.Module
    dataset: Dataset
    lr: float
    weight_decay: float
    stop: Stop
    seed: int

    def __post_init__(self):
        if len(self.dataset) == 0:
            raise ValueError("dataset has no training samples")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be positive")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number")

    @property
    def streamed(self) -> bool:
        return not isinstance(self.dataset.inputs, Tensor)

    @property
    def has_target(self) -> bool:
        return self.stop.loss is not None or self.stop.accuracy is not None

    def last_step(self, steps_an_epoch: int) -> float | int:
        caps = [self.stop.steps, self.stop.epochs and self.stop.epochs * steps_an_epoch, 2 if scale.dry_run() else None]
        return min((cap for cap in caps if cap is not None), default=math.inf)

    def converged(self, loss: float, accuracy: float) -> bool:
        loss_met = self.stop.loss is None or loss <= self.stop.loss
        return loss_met and (self.stop.accuracy is None or accuracy >= self.stop.accuracy)
