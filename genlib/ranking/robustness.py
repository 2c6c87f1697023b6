"""How often a measure is wrong of a pair, in the worst environment."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from genlib.ranking.pairs import Sweep, matched_pairs, sweep_of, tau
from genlib.ranking.rankings import Ranking, ranking_of

__all__ = ["environments", "resolvable_difference", "sign_errors"]

EFFECTIVE = 12  # pairs that an environment needs, counted by their weights


def sign_errors(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    test_samples: int,
    pooled: bool = True,
    bootstraps: int | str = 200,
    resample: str = "replicates",
    seed: int = 0,
    adjusted: bool = False,
) -> Ranking:
    """Weighted mean of ½ (1 - sgn Δμ · sgn Δg) over the pairs of an environment, the worst one (Dziugaite et al. 2020).

    Environments and weights as `environments`; `parts` hold the error of each that is used, `scores` their maximum,
    `.quantile(0.9)` that quantile. 0 is always right, 1 always wrong, ½ no better than chance; a tie of the measure
    counts ½. Noise alone raises a maximum, in the values as in the draws: hold it against a measure of pure noise.
    The draws keep the weights and the environments; one that a draw leaves empty is left out of that draw.
    Other arguments and draws as `pooled_kendall`. Cost: pairs · draws multiplications a measure.
    Errors as `environments` and `pooled_kendall`; no environment left: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed, adjusted)
    support, pairs = _environments(sweep, test_samples, pooled)
    if not support["used"].any():
        raise ValueError(
            f"none of {len(support)} environments has {EFFECTIVE} effective pairs: with test_samples = {test_samples} "
            f"only gaps that differ by {resolvable_difference(test_samples):.3f} count; take more test samples"
            + (" or more seeds" if pooled else ", more seeds, or pooled=True")
        )
    errors = [(1 - tau(sweep, cell)) / 2 for _, cell in pairs.groupby("environment")]
    return ranking_of(sweep, np.stack(errors, 1), support, "max", (0.0, 1.0))


def environments(
    table: pd.DataFrame, gap: str, axes: str | Sequence[str], *, test_samples: int, pooled: bool = True
) -> pd.DataFrame:
    """The environments of `sign_errors`, one row each, and which have enough pairs whose gaps can be told apart.

    An environment is one step of one axis, v₁ → v₂, and holds the pairs of networks that take it, all other axes being
    equal: over all settings of the others where `pooled`, else (Dziugaite et al. 2020) at one setting, so that its
    pairs are those of the seeds. Seeds are not matched. Of a pair w = (1 - 2 exp(-2n(Δ/2)²))₊², n the test samples of
    a network and Δ how far the gaps, as fractions, lie apart: Hoeffding's probability that their order is no accident
    of the test samples. It weighs (w - ½)₊. `effective` = (Σw)²/Σw²; `used` with 12 or more. Nothing here filters what
    the seed of a training adds. Unknown columns, NaN, an axis of one value, a gap in percent: ValueError.
    """
    return _environments(sweep_of(table, (), gap, axes, 0, "networks", 0), test_samples, pooled)[0]


def resolvable_difference(test_samples: int) -> float:
    """How far two gaps must lie apart to weigh anything in `sign_errors`: Δ = √(2/n · ln(2 / (1 - √½))) ≈ √(3.84/n)."""
    if test_samples < 1:
        raise ValueError(f"test_samples is {test_samples}; give the number of test samples that the gap rests on")
    return math.sqrt(2 / test_samples * math.log(2 / (1 - math.sqrt(0.5))))


def _environments(sweep: Sweep, test_samples: int, pooled: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The environments, and the pairs of those that are used, with their weights."""
    resolvable_difference(test_samples)
    if np.abs(sweep.gap).max() > 1:
        raise ValueError("gap exceeds 1; give it as a fraction of the samples, not in percent")
    tables, kept = [], []
    for axis in sweep.codes:
        pairs, _ = matched_pairs(sweep.codes, axis)
        difference = np.abs(sweep.gap[pairs["network_1"]] - sweep.gap[pairs["network_2"]])
        pairs["weight"] = np.maximum(_certainty(difference, test_samples) - 0.5, 0)
        cells = pairs.assign(square=pairs["weight"] ** 2).groupby(
            ["value_1", "value_2", *([] if pooled else ["setting"])]
        )
        found = cells.agg(
            low=("network_1", "first"),
            high=("network_2", "first"),
            pairs=("weight", "size"),
            total=("weight", "sum"),
            squares=("square", "sum"),
        )
        effective = (found["total"] ** 2 / found["squares"].where(found["squares"] > 0, 1)).to_numpy()
        used = effective > EFFECTIVE * (1 - 1e-9)
        pairs["environment"] = cells.ngroup()
        pairs = pairs[pairs["environment"].isin(np.flatnonzero(used)) & (pairs["weight"] > 0)]
        kept.append(pairs.assign(environment=pairs["environment"] + sum(map(len, tables))))
        first, second = (sweep.values.iloc[found[name]] for name in ("low", "high"))
        others = [name for name in sweep.codes if name != axis]
        at = [""] * len(found) if pooled else [_at(setting, others) for setting in first.to_dict("records")]
        steps = zip(first[axis], second[axis], at, strict=True)
        tables.append(
            pd.DataFrame(
                {
                    "part": [f"{axis}: {low} → {high}{where}" for low, high, where in steps],
                    "axis": axis,
                    "low": first[axis].to_numpy(object),
                    "high": second[axis].to_numpy(object),
                    "pairs": found["pairs"].to_numpy(),
                    "effective": effective,
                    "used": used,
                }
            )
        )
    return pd.concat(tables).set_index("part"), pd.concat(kept)


def _certainty(difference: Float[np.ndarray, " pairs"], test_samples: int) -> Float[np.ndarray, " pairs"]:
    """(1 - 2 exp(-2n(Δ/2)²))₊²: both gaps lie within Δ/2 of their expectations at least this probably."""
    return np.maximum(1 - 2 * np.exp(-2 * test_samples * (difference / 2) ** 2), 0) ** 2


def _at(setting: dict, others: list[str]) -> str:
    return " at " + ", ".join(f"{name} = {setting[name]}" for name in others) if others else ""
