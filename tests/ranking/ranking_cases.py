"""Sweeps whose gap is known, and Kendall's tau in a loop over pairs."""

import itertools

import numpy as np
import pandas as pd

from genlib.ranking import conditional_mutual_information, granulated_kendall, pooled_kendall, sign_errors
from genlib.ranking.pairs import sweep_of

AXES = ["width", "lr"]
ALL = (pooled_kendall, granulated_kendall, conditional_mutual_information)


def errors(*args, **options):
    return sign_errors(*args, **{"test_samples": 10_000} | options)


def grid(*, seeds=3, noise=0.02, seed=0, **axes):
    """A sweep of two axes (three of width, two of learning rate) whose gap falls in width and rises in lr."""
    axes = axes or {"width": [32, 64, 128], "lr": [0.01, 0.1]}
    cells = itertools.product(*axes.values(), range(seeds))
    table = pd.DataFrame(cells, columns=[*axes, "seed"])
    rng = np.random.default_rng(seed)
    table["gap"] = 0.5 - 0.05 * np.log2(table["width"] / 32) + 0.03 * (table["lr"] > 0.05)
    table["gap"] += rng.normal(0, noise, len(table))
    table["good"] = table["gap"] + rng.normal(0, 0.03, len(table))
    table["coarse"] = (table["good"] * 20).round()
    table["noise"] = rng.normal(size=len(table))
    return table


MEASURES = ["good", "coarse", "noise"]


def ragged(**options):
    """The same with rows lost, so that a configuration keeps one network and another none, and with tied gaps."""
    table = grid(**options)
    lost = (table["width"] == 32) & (table["lr"] == 0.1) | (table["width"] == 64) & (table["seed"] > 0)
    return table[~lost].assign(gap=table["gap"].round(2)).sample(frac=1, random_state=1)


def sign(x):
    return (x > 0) - (x < 0)


def rows_and_counts(table, resample="replicates", bootstraps=3):
    """The rows in the order that the draws are kept in, and how often each counts."""
    sweep = sweep_of(table, MEASURES, "gap", AXES, bootstraps, resample, 0)
    ordered = table.sort_values(["gap", *AXES], kind="stable")
    assert (ordered["gap"].to_numpy() == sweep.gap).all()
    return ordered.to_dict("records"), sweep.counts.T


def loop_tau(rows, count, measure, compared=lambda a, b: 1.0):
    """Σ c_a c_b w sgn Δμ sgn Δg / Σ c_a c_b w over pairs, one by one; None without any."""
    above = below = 0.0
    for (a, ca), (b, cb) in itertools.combinations(zip(rows, count, strict=True), 2):
        weight = ca * cb * compared(a, b)
        above += weight * sign(a[measure] - b[measure]) * sign(a["gap"] - b["gap"])
        below += weight
    return above / below if below else None


def step(axis, other, *, at=None, ends=None, weight=lambda a, b: 1.0):
    """Which pairs take a step of one axis: at one value of the other or at all, between two ends or any."""

    def compared(a, b):
        taken = a[axis] != b[axis] and a[other] == b[other] and (at is None or a[other] == at)
        return weight(a, b) if taken and (ends is None or {a[axis], b[axis]} == set(ends)) else 0.0

    return compared
