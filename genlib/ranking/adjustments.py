"""Measures as the code of Dziugaite et al. (2020) ranks them: divided by the number of training samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["Adjustment", "adjusted", "adjustment"]

# What a row of the catalogue is to the number C that their code divides, and what C's form is.
_FORMS = {
    "C": r"\sqrt{C/m}",
    "C, a logarithm": r"\tfrac12(C-\ln m)",
    "exp C": r"\tfrac12(C-\ln m)",
    "ln C": r"\sqrt{C/m}",
}


@dataclass(frozen=True)
class Adjustment:
    """How a row of the catalogue is adjusted, or why it is not.

    `form`: what the row is to their number C; `symbol`: the adjusted C, empty where there is none; `reason`, then, why;
    `difference`: what else sets the row apart from C, empty where nothing does.
    """

    form: str = ""
    reason: str = ""
    difference: str = ""

    @property
    def symbol(self) -> str:
        return _FORMS.get(self.form, "")


_BIASES = "their C counts the weights without the biases"
_KERNEL = "of a convolution their C takes the kernel for the Frobenius norm, the row the map"
_MARGIN = "the margin is an absolute value in their C, and no interpolated percentile"
_NOISE = "their C takes a σ whose noise has the variance σ in place of σ²"
_MIXED = f"{_NOISE}, and has |w − w⁰| in the denominator; {_BIASES}"


def _all(form: str, *names: str, difference: str = "") -> dict[str, Adjustment]:
    return {name: Adjustment(form, difference=difference) for name in names}


_ADJUSTMENTS = {
    **_all("C", "parameters", "l2", "l2_distance", difference=_BIASES),
    **_all("C", "parameter_norm", "frobenius_distance", "spectral_distance"),
    **_all("C", "stable_rank", difference=_KERNEL),
    **_all("C", "inverse_margin", difference=_MARGIN),
    **_all("C", "flatness", "flatness_magnitude", difference=_NOISE),
    **_all("C", "pac_bayes_origin", "pac_bayes_start", difference=f"{_NOISE}; {_BIASES}"),
    **_all("C", "pac_bayes_magnitude_origin", difference=_MIXED),
    **_all("C", "pac_bayes_magnitude_start", difference=f"{_NOISE}, in proportion to |w|; {_BIASES}"),
    **_all("C, a logarithm", "product_frobenius", "product_spectral"),
    **_all("C, a logarithm", "product_frobenius_margin", "product_spectral_margin", difference=_MARGIN),
    **_all("C, a logarithm", "spectral_from_origin", "spectral_from_start", difference=_MARGIN),
    **_all("exp C", "sum_frobenius", "sum_spectral"),
    **_all("exp C", "sum_frobenius_margin", "sum_spectral_margin", difference=_MARGIN),
    **_all("ln C", "path"),
    **_all("ln C", "path_margin", difference=_MARGIN),
    **{
        name: Adjustment(reason="it divides by m already")
        for name in ("spectral_complexity", "frobenius_complexity")
    },
}  # fmt: skip
_UNLISTED = Adjustment(reason="not on their list")


def adjustment(name: str) -> Adjustment:
    """How the row of this name is adjusted for the number of samples, or the reason why it is not."""
    return _ADJUSTMENTS.get(name, _UNLISTED)


def adjusted(table: pd.DataFrame, names: str | Sequence[str], *, samples: str | int | ArrayLike = "n") -> pd.DataFrame:
    """The table with these rows of the catalogue adjusted for the number m of training samples (Dziugaite et al. 2020).

    Their code ends with it: of a number C that is a logarithm ½(C − ln m) is ranked, of every other √(C/m). `names`:
    columns named as in the catalogue; `samples`: m of each network, or the column that holds it. What a column is to C
    says `adjustment`: of a path norm, which is ln C here, √(exp(·)/m) is taken, of a geometric mean, exp C here,
    ½(ln(·) − ln m). Within one m the order of networks stays; where m differs it may turn. Cost: one pass over the
    columns. ValueError: a column that the table lacks, m that is not a positive number for each network, a name
    without an adjusted form (with the reason), a value below zero under a root or a logarithm.
    """
    names = [names] if isinstance(names, str) else list(names)
    if isinstance(samples, str) and samples not in table:
        raise ValueError(f"samples is {samples!r}, no column of the table; name the one that holds m, or give m itself")
    if unknown := [name for name in names if name not in table]:
        raise ValueError(f"names holds {', '.join(unknown)}, which the table lacks; measure them first")
    if without := [name for name in names if not adjustment(name).form]:
        listed = "; ".join(f"{name}: {adjustment(name).reason}" for name in without)
        raise ValueError(f"names holds rows without an adjusted form ({listed}); leave them out, or rank them raw")
    m = table[samples].to_numpy() if isinstance(samples, str) else np.asarray(samples)
    if not np.issubdtype(m.dtype, np.number) or m.shape not in ((), (len(table),)) or not (m > 0).all():
        raise ValueError(
            f"samples is not one positive number a network ({len(table)} of them); give the training samples of each"
        )
    return table.assign(**{name: _adjusted(name, table[name], m.astype(float)) for name in names})


def _adjusted(name: str, column: pd.Series, m: np.ndarray) -> np.ndarray:
    form = adjustment(name).form
    if not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"names holds {name}, a column of no numbers; give the values that evaluate returns")
    value = column.to_numpy(float)
    if form in ("C", "exp C") and (value < 0).any():
        raise ValueError(f"names holds {name}, which is negative for {(value < 0).sum()} networks and has no root")
    with np.errstate(divide="ignore", over="ignore"):
        if form == "C":
            return np.sqrt(value / m)
        if form == "ln C":
            return np.exp((value - np.log(m)) / 2)
        return ((np.log(value) if form == "exp C" else value) - np.log(m)) / 2
