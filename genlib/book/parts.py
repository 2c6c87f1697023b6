"""Parts of a claim: a criterion, whose question it is, the smallest effect of interest; and what seeds say of each."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genlib.book import inference
from genlib.book.criteria import Criterion
from genlib.book.inference import Bounds

__all__ = ["Effect", "Part", "ours", "paper", "shown"]


@dataclass(frozen=True)
class Part:
    """One part of a claim: a criterion, the smallest effect of interest, and the range of the effect.

    `whose` is `paper` or `ours`, a question that this book adds; no verdict on a paper counts it. `shown` holds by a
    theorem or by construction, so that its effects are all positive or something is broken.
    """

    criterion: str
    smallest: float | int | None
    whose: str
    shown: bool = False
    bounds: Bounds = inference.UNBOUNDED

    def check(self, name: str) -> None:
        """Refuse what decides nothing, by this name."""
        low, high = self.bounds
        if self.shown:
            return
        if not (self.smallest and 0 < self.smallest < math.inf):
            raise ValueError(
                f"{name}: smallest is {self.smallest!r}; give the smallest effect of interest, a positive number"
            )
        if not low <= 0 <= high:
            raise ValueError(f"{name}: bounds are {self.bounds}; an effect of 0 must lie within")
        if self.smallest > min(high, -low):
            raise ValueError(
                f"{name}: smallest is {self.smallest}, beyond what the effect can be, {self.bounds}; give a smaller one"
            )

    def described(self, name: str) -> str:
        """In a line of Markdown, under this name."""
        kinds = ["our question"] * (self.whose == "ours") + ["shown"] * self.shown
        head = " ".join([f"*{name}*"] * bool(name) + [f"({', '.join(kinds)})"] * bool(kinds))
        interest = "" if self.shown else f"; smallest effect of interest {self.smallest:g}"
        return f"{head}: {self.criterion}{interest}" if head else f"{self.criterion}{interest}"


def paper(criterion: str, *, smallest: float | int | None = None, bounds: Bounds = inference.UNBOUNDED) -> Part:
    """A part that the paper states, with the smallest effect of interest, in the unit of the effect.

    `bounds` is the range of an effect that has one, such as (-1, 1) of a correlation. `Claims.state` refuses a part
    without `smallest`.
    """
    return Part(criterion, smallest, "paper", bounds=bounds)


def ours(criterion: str, *, smallest: float | int | None = None, bounds: Bounds = inference.UNBOUNDED) -> Part:
    """A question that this book adds: it gets an answer, and the paper's verdict does not count it."""
    return Part(criterion, smallest, "ours", bounds=bounds)


def shown(criterion: str, *, whose: str = "paper") -> Part:
    """What holds by a theorem or by construction: the effect of every seed is above 0, or an error says where not."""
    return Part(criterion, None, whose, shown=True)


@dataclass(frozen=True)
class Effect:
    """One effect a seed of one part, positive in the claimed direction."""

    part: Part
    values: tuple[float, ...]
    of: Criterion

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, within the bounds of the effect."""
        return inference.bounded_interval(self.values, self.part.bounds)

    @property
    def verdict(self) -> str:
        """One of `inference.VERDICTS`."""
        return "shown" if self.part.shown else inference.verdict(self.values, self.part.smallest, self.part.bounds)

    @cached_property
    def power(self) -> float | None:
        """The chance that so many seeds find the smallest effect of interest, by simulation; None without a test."""
        if self.part.shown or len(self.values) < 2:
            return None
        return inference.rates(self.of.simulated(self.part.smallest), self.part.smallest)[0]

    @property
    def p(self) -> float | None:
        """The p-value of the test that the verdict rests on; None of no test, or where all seeds agree."""
        return None if self.part.shown or len(self.values) < 2 else inference.p_value(self.values, self.part.smallest)
