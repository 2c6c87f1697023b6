"""A score of each measure, the parts that it sums up, and its interval."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from genlib.ranking.pairs import Sweep

__all__ = ["Ranking", "pseudo_values", "ranking_of"]

_SUMMARIES = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax}


@dataclass(frozen=True, eq=False)
class Ranking:
    """A score of each measure, the parts that it sums up, and how they vary when networks are drawn anew.

    `draws` [1 + bootstraps, parts, measures]: the values, then those of each draw. `summary`, over parts: their mean,
    min or max. `support`: what each part rests on; only those `used` are among the draws. `unvaried`: configurations
    of one network, which no draw of replicates varies. Intervals, at 95 %, are value ± t₀.₉₇₅(B-1) s, s the standard
    deviation over B draws, cut to `bounds`. Percentiles would not do: drawing anew adds noise, which raises a maximum
    and a mutual information, so that their percentiles may lie beside the value. Of a `jackknife` the draws lack one
    unit each, and the intervals are those of the mean of their `pseudo_values`.
    """

    measures: tuple[str, ...]
    draws: Float[np.ndarray, "draws parts measures"]
    support: pd.DataFrame
    summary: str
    bounds: tuple[float, float]
    unvaried: int
    jackknife: bool = False

    @property
    def scores(self) -> pd.DataFrame:
        """One row a measure: `value`, and with bootstraps `low` and `high`."""
        return self._table(_SUMMARIES[self.summary](self.draws, axis=1), self._named)

    @property
    def parts(self) -> pd.DataFrame:
        """One row a part and measure: `value`, and with bootstraps `low` and `high`."""
        used = self.support.index[self.support["used"]]
        both = pd.MultiIndex.from_product([used, self._named])
        return self._table(self.draws.reshape(len(self.draws), -1), both)

    def quantile(self, share: float | int) -> pd.DataFrame:
        """As `scores`, with this quantile over the parts in place of the summary, linear between them."""
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; a quantile lies between 0 and 1")
        return self._table(np.nanquantile(self.draws, share, axis=1), self._named)

    @property
    def _named(self) -> pd.Index:
        return pd.Index(self.measures, name="measure")

    def _table(self, draws: Float[np.ndarray, "draws n"], index: pd.Index) -> pd.DataFrame:
        table = pd.DataFrame({"value": draws[0]}, index=index)
        if self.jackknife:
            of_each = pseudo_values(draws)
            half = stats.t.ppf(0.975, len(of_each) - 1) * of_each.std(0, ddof=1) / np.sqrt(len(of_each))
            table["low"] = np.clip(of_each.mean(0) - half, *self.bounds)
            table["high"] = np.clip(of_each.mean(0) + half, *self.bounds)
        elif (bootstraps := len(draws) - 1) > 0:
            # A part that hardly any draw holds: nothing is known of its spread.
            spread = np.ma.masked_invalid(draws[1:]).std(axis=0, ddof=1).filled(np.inf)
            half = stats.t.ppf(0.975, bootstraps - 1) * spread
            table["low"] = np.clip(draws[0] - half, *self.bounds)
            table["high"] = np.clip(draws[0] + half, *self.bounds)
        return table


def ranking_of(
    sweep: Sweep,
    draws: Float[np.ndarray, "draws parts measures"],
    support: pd.DataFrame,
    summary: str,
    bounds: tuple[float, float],
) -> Ranking:
    if not np.isfinite(draws).any(1).all():
        raise ValueError(
            "resample leaves draws without any pair to compare: too few units are drawn; bootstraps=0 skips it"
        )
    return Ranking(sweep.measures, draws, support, summary, bounds, sweep.unvaried, sweep.jackknife)


def pseudo_values(of: ArrayLike) -> Float[np.ndarray, "units ..."]:
    """n θ − (n−1) θ₋ᵢ, one a unit, from θ and then θ₋ᵢ without unit i: a jackknife's stand-in for one effect a unit.

    `of` [1 + n, ...], as a jackknife's `draws` are, or what has been computed of each. Of a mean over units they are
    the units' own values; their mean ± t₀.₉₇₅(n-1) s/√n is the interval (Tukey 1958). Sound where θ is smooth in the
    units, as means are; the largest of many is not, and its interval is rough. Fewer than three units: ValueError.
    """
    of = np.asarray(of, float)
    if of.ndim < 1 or (n := len(of) - 1) < 3:
        raise ValueError(f"of has shape {of.shape}; give the value, and then that without each of at least three units")
    return n * of[0] - (n - 1) * of[1:]
