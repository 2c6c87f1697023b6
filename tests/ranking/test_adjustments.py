"""Measures divided by the number of samples, and their environments, as the code of Dziugaite et al. builds them."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from genlib import ranking
from genlib.measures import CATALOGUE
from genlib.ranking import adjusted, adjustment, environments, sign_errors

LISTED = [name for name in CATALOGUE if adjustment(name).form]


def toy(seeds=4):
    """Two widths, two numbers of samples; what a measure says of more samples turns over when it is divided by them."""
    rows = []
    for width, n, seed in itertools.product([8, 16], [100, 400], range(seeds)):
        rows.append({"width": width, "n": n, "seed": seed})
        rows[-1]["gap"] = 0.5 - 0.2 * (n == 400) - 0.1 * (width == 16) + 0.003 * seed
        rows[-1]["product_spectral"] = 10 + 0.5 * (n == 400) + 0.3 * (width == 16) - 0.01 * seed
        rows[-1]["l2"] = 3 + (n == 400) + 0.5 * (seed == 0) * (width == 16)
    return pd.DataFrame(rows)


def test_adjusted_values_by_hand():
    table = pd.DataFrame({"n": [4, 9], "l2": [16.0, 25.0], "product_spectral": [math.log(4), math.log(36)],
                          "sum_spectral": [16.0, 9.0], "path": [math.log(36.0), math.log(81.0)]})  # fmt: skip
    found = adjusted(table, ["l2", "product_spectral", "sum_spectral", "path"])
    np.testing.assert_allclose(found["l2"], [2, 5 / 3])  # √(16/4), √(25/9): the norm is not squared
    np.testing.assert_allclose(found["product_spectral"], [0, math.log(2)], atol=1e-15)  # ½ ln(4/4), ½ ln(36/9)
    np.testing.assert_allclose(found["sum_spectral"], [math.log(2), 0], atol=1e-15)  # ½ (ln 16 − ln 4), ½ (ln 9 − ln 9)
    np.testing.assert_allclose(found["path"], [3, 3])  # √(36/4), √(81/9)
    assert table["l2"].tolist() == [16, 25] and found["n"].tolist() == [4, 9]
    np.testing.assert_allclose(adjusted(table, "l2", samples=4)["l2"], [2, 2.5])


def test_the_rows_of_their_list_and_no_others_are_adjusted():
    assert len(LISTED) == 26
    for name in CATALOGUE:
        found = adjustment(name)
        assert bool(found.symbol) == bool(found.form) != bool(found.reason), name
        assert bool(found.symbol) == (name in LISTED)
    assert adjustment("spectral_complexity").reason == "it divides by m already"
    assert adjustment("transitions").reason == "not on their list"
    # What is a logarithm with them is one here, or its power.
    logarithms = {name for name in LISTED if "ln" in adjustment(name).symbol}
    assert logarithms == {n for n in LISTED if n.startswith(("product_", "sum_", "spectral_from"))}


def by_their_way(table, measures, axes, test_samples):
    """Their two passes: sums over ordered pairs of networks, then environments of an effective size of 12."""
    points = [(tuple(row[axes]), row) for _, row in table.iterrows()]
    losses = {name: defaultdict(float) for name in measures}
    total, squares = defaultdict(float), defaultdict(float)
    for (one, a), (two, b) in itertools.product(points, points):
        if sum(x != y for x, y in zip(one, two, strict=True)) != 1:
            continue
        certain = max(0.0, 1 - 2 * math.exp(-2 * test_samples * (abs(a.gap - b.gap) / 2) ** 2)) ** 2
        weight = certain - 0.5 if certain > 0.5 else 0
        total[one, two] += weight
        squares[one, two] += weight**2
        for name in measures:
            agree = np.sign(a[name] - b[name]) * np.sign(a.gap - b.gap)
            losses[name][one, two] += weight * (1 - agree) / 2
    kept = [pair for pair in total if squares[pair] and total[pair] ** 2 / squares[pair] >= 12 - 1e-9]
    return {name: sorted(losses[name][pair] / total[pair] for pair in kept) for name in measures}


def test_environments_of_adjusted_measures_are_those_of_their_code():
    table = adjusted(toy(), ["product_spectral", "l2"])
    table = table.astype({"width": float, "n": float})
    names, axes = ["product_spectral", "l2"], ["width", "n"]
    found = sign_errors(table, names, "gap", axes, test_samples=10_000, pooled=False, bootstraps=0)
    expected = by_their_way(table, names, axes, 10_000)
    in_each = found.parts["value"].unstack("measure")
    assert len(in_each) == 4 and found.support["effective"].min() > 12
    for name in names:  # each environment is met twice there, once a direction
        np.testing.assert_allclose(np.repeat(np.sort(in_each[name]), 2), expected[name], atol=1e-12)
    np.testing.assert_allclose(found.scores["value"], [max(expected[name]) for name in names])


def test_the_division_turns_an_environment_over():
    raw = toy()
    errors = {}
    for what, table in {"raw": raw, "adjusted": adjusted(raw, "product_spectral")}.items():
        found = sign_errors(
            table, "product_spectral", "gap", ["width", "n"], test_samples=10_000, pooled=False, bootstraps=0
        )
        errors[what] = found.parts["value"]
    of_n = [part for part, _ in errors["raw"].index if part.startswith("n:")]
    of_width = [part for part, _ in errors["raw"].index if part.startswith("width:")]
    # More samples raise the raw logarithm by 0.5 and lower its half less half of ln 4 = 1.39 by 0.44.
    assert (errors["raw"][of_n] == 1).all() and (errors["adjusted"][of_n] == 0).all()
    assert (errors["raw"][of_width] == 1).all() and (errors["adjusted"][of_width] == 1).all()


def test_four_seeds_a_side_are_the_least():
    for seeds, used in ((3, 0), (4, 4)):
        found = environments(toy(seeds), "gap", ["width", "n"], test_samples=10_000, pooled=False)
        assert found["used"].sum() == used


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"names": ["transitions"]}, "without an adjusted form .*not on their list.*rank them raw"),
        ({}, {"names": ["spectral_complexity"]}, "divides by m already"),
        ({}, {"names": ["hessian_trace_2"]}, "which the table lacks"),
        ({}, {"names": ["l2"], "samples": "m"}, "samples is 'm', no column"),
        ({"n": 0}, {"names": ["l2"]}, "samples is not one positive number a network"),
        ({"n": "few"}, {"names": ["l2"]}, "samples is not one positive number a network"),
        ({}, {"names": ["l2"], "samples": [1, 2, 3]}, "samples is not one positive number a network"),
        ({"l2": -1.0}, {"names": ["l2"]}, "names holds l2, which is negative for 16 networks"),
        ({"l2": "large"}, {"names": ["l2"]}, "names holds l2, a column of no numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_adjusted_is_refused_with_the_mend(change, options, message):
    table = toy().assign(**{"transitions": 1.0, "spectral_complexity": 1.0} | change)
    with pytest.raises(ValueError, match=message):
        adjusted(table, **options)


@pytest.mark.parametrize(
    ("ranks", "how"),
    [
        (ranking.pooled_kendall, {}),
        (ranking.granulated_kendall, {}),
        (ranking.conditional_mutual_information, {"bootstraps": 2}),
        (ranking.sign_errors, {"test_samples": 10_000}),
    ],
)
def test_every_yardstick_takes_the_adjusted_form(ranks, how):
    names = ["product_spectral", "l2"]
    found = ranks(toy(), names, "gap", ["width", "n"], adjusted=True, **how)
    pd.testing.assert_frame_equal(
        found.scores, ranks(adjusted(toy(), names), names, "gap", ["width", "n"], **how).scores
    )
    assert not found.scores.equals(ranks(toy(), names, "gap", ["width", "n"], **how).scores)
    with pytest.raises(ValueError, match=r"not on their list"):
        ranks(toy().assign(steps=range(16)), "steps", "gap", ["width", "n"], adjusted=True, **how)
