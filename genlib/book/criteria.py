"""Criteria of claims: the effect of each seed, computed from the quantities that it combines.

A criterion keeps these quantities, so that it can be run again on simulated ones, without an effect and with one of a
given size: `Criterion.simulated`. That is how its false positives and its power are known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

__all__ = ["Criterion", "difference", "log_ratio", "rank_correlation", "slope", "smallest", "tau", "value"]

Values = Sequence[float | int] | pd.Series | np.ndarray


@dataclass(frozen=True)
class Criterion:
    """Quantities of each seed, (seeds, k), the name of the function that makes an effect of them, and its grid.

    Names: `value` x₀; `difference` x₀ - x₁; `smallest` minₖ xₖ; `tau` Kendall's τ_b of xₖ with the grid; `slope` the
    least-squares slope of xₖ on the grid; `rank correlation` Spearman's of the first half of xₖ with the second.
    `seeds` are known where series or tables named them, so that no two are confused and none is lost.
    """

    name: str
    quantities: Float[np.ndarray, "seeds k"]
    grid: tuple[float, ...] = ()
    seeds: tuple[int, ...] | None = None

    @classmethod
    def of_record(cls, kept: Mapping) -> "Criterion":
        """What a record kept of a criterion, as one again."""
        return cls(kept["name"], np.array(kept["quantities"], float), tuple(map(float, kept["grid"])))

    def at(self, seeds: Sequence[int]) -> "Criterion":
        """Of these seeds alone, in this order."""
        return replace(self, quantities=self.quantities[[self.seeds.index(seed) for seed in seeds]], seeds=tuple(seeds))

    @property
    def effects(self) -> Float[np.ndarray, " seeds"]:
        """One effect a seed."""
        return self._effects(self.quantities)

    def simulated(self, effect: float | int, *, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draws seeds"]:
        """Effects of simulated quantities whose effect is this on average, with the covariance of these quantities.

        Quantities are normal around means without an effect, to which the least that the criterion asks for is added:
        a shift of the first, of all, or along the grid. Rank correlations are normal on Fisher's scale, atanh ρ, with
        the variance between seeds that these have there.
        """
        rng = np.random.default_rng(seed)
        seeds = len(self.quantities)
        if self.name == "rank correlation":
            return self._correlated(effect, rng, draws)
        mean = self.quantities.mean(0)
        noise = rng.standard_normal((draws, seeds, seeds)) @ (self.quantities - mean) / max(seeds - 1, 1) ** 0.5
        start, step = _without_effect(self.name, mean, np.array(self.grid))
        if effect == 0:
            return self._effects(start + noise)
        return self._effects(
            start + _root(lambda a: self._effects(start + a * step + noise).mean() - effect) * step + noise
        )

    def _effects(self, quantities: np.ndarray) -> np.ndarray:
        grid = np.array(self.grid)
        match self.name:
            case "value":
                return quantities[..., 0]
            case "difference":
                return quantities[..., 0] - quantities[..., 1]
            case "smallest":
                return quantities.min(-1)
            case "slope":
                centred = grid - grid.mean()
                return quantities @ centred / (centred @ centred)
            case "tau":
                i, j = np.triu_indices(len(grid), 1)
                of_grid = np.sign(grid[i] - grid[j])
                of_values = np.sign(quantities[..., i] - quantities[..., j])
                pairs = np.sqrt((of_grid**2).sum() * (of_values**2).sum(-1))
                return np.divide((of_grid * of_values).sum(-1), pairs, out=np.zeros_like(pairs), where=pairs > 0)
        x, y = (stats.rankdata(half, axis=-1) for half in np.split(quantities, 2, axis=-1))
        x, y = (half - half.mean(-1, keepdims=True) for half in (x, y))
        norms = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
        return np.divide((x * y).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)

    def _correlated(self, effect: float, rng: np.random.Generator, draws: int) -> np.ndarray:
        seeds, k = self.quantities.shape
        n = max(k // 2, 2)
        most = 1 - 6 / (n * (n**2 - 1))  # half a step of the coefficient below 1, where Fisher's scale ends
        z = np.arctanh(self.effects.clip(-most, most))
        spread = np.sqrt(((z - z.mean()) ** 2).sum() / max(seeds - 1, 1))
        noise = spread * rng.standard_normal((draws, seeds))
        return np.tanh(noise if effect == 0 else noise + _root(lambda m: np.tanh(m + noise).mean() - effect))


def value(x: Values, *, above: float | int = 0) -> Criterion:
    """x - above, of one value a seed."""
    quantities, seeds = _columns(x)
    return Criterion("value", quantities - above, seeds=seeds)


def difference(x: Values, y: Values) -> Criterion:
    """x - y, of one pair a seed."""
    quantities, seeds = _columns(x, y)
    return Criterion("difference", quantities, seeds=seeds)


def log_ratio(x: Values, y: Values) -> Criterion:
    """ln x - ln y, of one pair of positive numbers a seed."""
    both, seeds = _columns(x, y)
    if not (both > 0).all():
        raise ValueError("x, y: a ratio on the log scale takes positive numbers; give differences of these instead")
    return Criterion("difference", np.log(both), seeds=seeds)


def smallest(of: pd.DataFrame | Mapping[object, Values]) -> Criterion:
    """The smallest of several numbers of each seed: the rows of a table with a column a seed, or a mapping's values."""
    quantities, seeds = _table(of) if isinstance(of, pd.DataFrame) else _columns(*of.values())
    return Criterion("smallest", quantities, seeds=seeds)


def tau(of: pd.DataFrame) -> Criterion:
    """Kendall's τ_b of a table's index with each of its columns, one a seed; 0 where all values are tied."""
    quantities, seeds = _table(of)
    return Criterion("tau", quantities, tuple(map(float, of.index)), seeds)


def slope(of: pd.DataFrame, *, log_index: bool = False) -> Criterion:
    """The least-squares slope of each column, one a seed, on a table's index, or on its logarithm."""
    index = np.array(of.index, float)
    quantities, seeds = _table(of)
    return Criterion("slope", quantities, tuple((np.log(index) if log_index else index).tolist()), seeds)


def rank_correlation(x: pd.DataFrame | np.ndarray, y: pd.DataFrame | np.ndarray) -> Criterion:
    """Spearman's rank correlation of x and y over the rows, (networks, seeds): one a seed; 0 where one is constant."""
    if np.shape(x) != np.shape(y) or np.ndim(x) != 2:
        raise ValueError(f"x, y: shapes {np.shape(x)} and {np.shape(y)}; give two tables of networks by seeds")
    seeds = None
    if isinstance(x, pd.DataFrame) and isinstance(y, pd.DataFrame):
        x, seeds = x[list(y.columns)], _table(y)[1]
    return Criterion("rank correlation", np.concatenate([np.array(x, float), np.array(y, float)]).T, seeds=seeds)


def _columns(*values: Values) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """Side by side, and the seeds that series among them are indexed by, in the order of the first."""
    series = [each for each in values if isinstance(each, pd.Series) and not isinstance(each.index, pd.RangeIndex)]
    if not series:
        return np.stack([np.array(each, float) for each in values], -1), None
    index = series[0].index
    if any(len(each) != len(index) or set(each.index) != set(index) for each in series) or not index.is_unique:
        raise ValueError("x, y: series of other seeds than each other, or of a seed twice; give one value a seed")
    aligned = [each.loc[index] if any(each is one for one in series) else each for each in values]
    return np.stack([np.array(each, float) for each in aligned], -1), tuple(index)


def _table(of: pd.DataFrame) -> tuple[np.ndarray, tuple[int, ...] | None]:
    return of.to_numpy(float).T, None if isinstance(of.columns, pd.RangeIndex) else tuple(of.columns)


def _without_effect(name: str, mean: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means that have no effect, nearest to these, and the direction in which the effect grows."""
    match name:
        case "value":
            return np.zeros(1), np.ones(1)
        case "difference":
            return np.full(2, mean.mean()), np.array([0.5, -0.5])
        case "smallest":
            return mean - mean.min(), np.ones_like(mean)
    return np.full_like(mean, mean.mean()), grid - grid.mean()


def _root(of: Callable[[float], float]) -> float:
    """Where an increasing function of a positive number crosses zero: the bound is doubled, then halved."""
    high = 1e-6
    while of(high) < 0 and high < 1e12:
        high *= 2
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < 0 else (low, middle)
    return high
