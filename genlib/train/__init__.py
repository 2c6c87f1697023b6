"""How does one train a network, or a stack of them, until it fits? Used from chapter 1, "Memorization", on.

`fit` one network, `fit_many` a stack of them at once. Data lives on the device as tensors.
"""

from genlib.train.loop import fit, fit_many, loss_and_accuracy
from genlib.train.plan import Stop
from genlib.train.runs import Run, Runs

__all__ = ["Run", "Runs", "Stop", "fit", "fit_many", "loss_and_accuracy"]
