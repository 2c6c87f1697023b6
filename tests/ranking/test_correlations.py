"""Kendall's tau, pooled and granulated, against loops over pairs."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranking_cases import AXES, MEASURES, grid, loop_tau, ragged, rows_and_counts, sign, step
from scipy import stats

from genlib.ranking import granulated_kendall, kendall, pooled_kendall


def test_kendall_by_hand():
    # six pairs: four agree, one opposes, one is tied in the measure
    found = kendall([1, 2, 2, 4], [1.0, 3.0, 2.5, 2.0])
    assert found.tau == pytest.approx((3 - 2) / 6)
    assert found.tau_b == pytest.approx((3 - 2) / math.sqrt(5 * 6))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_kendall_counts_ties_as_the_paper_does_and_as_scipy_does(pairs):
    measure, gap = map(np.array, zip(*pairs, strict=True))
    if len(set(measure)) < 2 or len(set(gap)) < 2:
        with pytest.raises(ValueError, match="same value"):
            kendall(measure, gap)
        return
    found = kendall(measure, gap)
    signs = [sign(a - b) * sign(c - d) for (a, c), (b, d) in itertools.combinations(pairs, 2)]
    assert found.tau == pytest.approx(np.mean(signs), abs=1e-12)
    assert found.tau_b == pytest.approx(stats.kendalltau(measure, gap).statistic, abs=1e-12)
    assert abs(found.tau) <= abs(found.tau_b) + 1e-12


def test_kendall_is_scipys_where_nothing_is_tied():
    measure, gap = np.random.default_rng(0).normal(size=(2, 50))
    found = kendall(measure, gap)
    assert found.tau == pytest.approx(found.tau_b, abs=1e-12)
    assert found.tau_b == pytest.approx(stats.kendalltau(measure, gap).statistic)


def test_kendall_takes_infinite_measures():
    assert kendall([-np.inf, 0.0, np.inf], [1.0, 2.0, 3.0]).tau == 1


@pytest.mark.parametrize(
    ("measure", "gap", "message"),
    [
        ([1.0, 2.0], [1.0], "shapes"),
        ([1.0], [1.0], "1 network"),
        ([1.0, np.nan], [1.0, 2.0], r"NaN in measure \(1 of 2\)"),
        ([1.0, 1.0], [1.0, 2.0], "measure: the same value"),
        ([1.0, 2.0], [3.0, 3.0], "gap: the same value"),
        (["a", "b"], [1.0, 2.0], "no column of numbers"),
    ],
)
def test_kendall_refuses(measure, gap, message):
    with pytest.raises(ValueError, match=message):
        kendall(measure, gap)


@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_pooled_against_a_loop(resample):
    table = ragged()
    rows, counts = rows_and_counts(table, resample)
    found = pooled_kendall(table, MEASURES, "gap", AXES, bootstraps=3, resample=resample).draws[:, 0]
    expected = [[loop_tau(rows, count, measure) for measure in MEASURES] for count in counts]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pooled_is_kendalls_tau():
    table = ragged()
    scores = pooled_kendall(table, MEASURES, "gap", AXES, bootstraps=0).scores
    assert list(scores.columns) == ["value"]
    for measure in MEASURES:
        assert scores.loc[measure, "value"] == pytest.approx(kendall(table[measure], table["gap"]).tau, abs=1e-6)


def test_pooled_over_more_networks_than_a_block_holds():
    table = grid(seeds=100)
    found = pooled_kendall(table, MEASURES, "gap", AXES, bootstraps=0).scores["value"]
    expected = [kendall(table[measure], table["gap"]).tau for measure in MEASURES]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_granulated_by_hand():
    table = pd.DataFrame(
        {
            "width": [1, 1, 2, 2],
            "lr": ["low", "high", "low", "high"],
            "gap": [0.4, 0.3, 0.2, 0.25],
            "measure": [4.0, 3.0, 5.0, 1.0],
        }
    )
    found = granulated_kendall(table, "measure", "gap", AXES, bootstraps=0)
    # along width: 4 → 5 while the gap falls, 3 → 1 while it falls; along lr: 4 → 3 falling, 5 → 1 rising
    assert found.parts["value"].to_dict() == {("width", "measure"): 0.0, ("lr", "measure"): 0.0}
    falling = granulated_kendall(table.assign(measure=-table["width"]), "measure", "gap", AXES, bootstraps=0)
    assert falling.parts["value"].to_dict() == {("width", "measure"): 1.0, ("lr", "measure"): 0.0}
    assert falling.scores.loc["measure", "value"] == 0.5


@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_granulated_against_a_loop(resample):
    table = ragged(seeds=4)
    rows, counts = rows_and_counts(table, resample)
    found = granulated_kendall(table, MEASURES, "gap", AXES, bootstraps=3, resample=resample)
    for part, (axis, other) in enumerate([("width", "lr"), ("lr", "width")]):
        steps = [step(axis, other, at=value) for value in sorted(set(table[other]))]
        for draw, count in enumerate(counts):
            for k, measure in enumerate(MEASURES):
                taus = [loop_tau(rows, count, measure, compared) for compared in steps]
                expected = np.mean([tau for tau in taus if tau is not None])
                assert found.draws[draw, part, k] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(found.scores["value"], found.draws[0].mean(0))


def test_granulated_counts_the_settings_it_leaves_out():
    table = grid()
    table = table[(table["width"] < 128) | (table["lr"] < 0.05)]
    support = granulated_kendall(table, "good", "gap", AXES).support
    # at width 128 one learning rate is left: nothing to compare along it
    assert support["left_out"].to_dict() == {"width": 0, "lr": 1}
    assert support["settings"].to_dict() == {"width": 2, "lr": 2}
    assert support["pairs"].to_dict() == {"width": 3 * 9 + 9, "lr": 2 * 9}


def test_two_seeds_of_one_configuration_are_not_compared():
    table = pd.DataFrame({"width": [1, 1, 2, 2], "gap": [0.1, 0.2, 0.3, 0.4], "measure": [2.0, 1.0, 4.0, 3.0]})
    assert granulated_kendall(table, "measure", "gap", "width", bootstraps=0).scores.loc["measure", "value"] == 1
    assert pooled_kendall(table, "measure", "gap", "width", bootstraps=0).scores.loc["measure", "value"] < 1


def test_configurations_of_one_network_are_counted():
    assert granulated_kendall(ragged(), "good", "gap", AXES).unvaried == 2
    assert granulated_kendall(grid(), "good", "gap", AXES).unvaried == 0
