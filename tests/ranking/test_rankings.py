"""What every ranking says of planted measures, keeps to, and refuses."""

import math

import numpy as np
import pandas as pd
import pytest
from ranking_cases import ALL, AXES, MEASURES, errors, grid, ragged

from genlib.estimates import interval
from genlib.ranking import (
    Ranking,
    conditional_mutual_information,
    granulated_kendall,
    pooled_kendall,
    pseudo_values,
)


def test_the_gap_itself_is_always_right_and_its_negative_always_wrong():
    table = grid(seeds=5).assign(oracle=lambda t: 3 * t["gap"] + 1, opposite=lambda t: -t["gap"])
    pooled, granulated, information = (f(table, ["oracle", "opposite"], "gap", AXES).scores for f in ALL)
    worst = errors(table, ["oracle", "opposite"], "gap", AXES).scores
    for scores, oracle, opposite in ((pooled, 1, -1), (granulated, 1, -1), (information, 1, 1), (worst, 0, 1)):
        np.testing.assert_allclose(scores.loc["oracle"], oracle, atol=1e-6)
        np.testing.assert_allclose(scores.loc["opposite"], opposite, atol=1e-6)


def test_noise_tells_nothing():
    table = grid(seeds=30)
    pooled, granulated, information = (f(table, "noise", "gap", AXES).scores.loc["noise"] for f in ALL)
    worst = errors(table, "noise", "gap", AXES).scores.loc["noise"]
    assert abs(pooled["value"]) < 2 / math.sqrt(len(table))
    assert pooled["low"] < 0 < pooled["high"]
    assert granulated["low"] < 0 < granulated["high"]
    assert information["low"] == 0 and information["value"] < 0.01
    assert abs(worst["value"] - 0.5) < 0.1


def test_a_planted_confounder_convinces_pooling_alone():
    table = grid(seeds=5, noise=0.005, width=[32, 64, 128, 256], lr=[0.01, 0.1], depth=[1, 2])
    table = table.assign(planted=-table["width"])
    axes = ["width", "lr", "depth"]
    assert pooled_kendall(table, "planted", "gap", axes).scores.loc["planted", "low"] > 0.5
    along = granulated_kendall(table, "planted", "gap", axes)
    assert along.parts["value"].xs("planted", level="measure")[["lr", "depth"]].tolist() == [0, 0]
    assert along.scores.loc["planted", "value"] < 0.34
    assert conditional_mutual_information(table, "planted", "gap", axes).scores.loc["planted", "value"] < 1e-9
    assert errors(table, "planted", "gap", axes).scores.loc["planted", "value"] == 0.5


@pytest.mark.parametrize("function", [*ALL, errors])
def test_the_order_of_rows_and_measures_makes_no_difference(function):
    table = grid(seeds=4)
    shuffled = function(table.sample(frac=1, random_state=2), MEASURES[::-1], "gap", AXES)
    found = function(table, MEASURES, "gap", AXES)
    pd.testing.assert_frame_equal(found.scores, shuffled.scores.loc[MEASURES], atol=1e-9)
    pd.testing.assert_frame_equal(found.support, shuffled.support)


@pytest.mark.parametrize("function", [*ALL, errors])
def test_only_the_order_of_a_measure_counts(function):
    table = grid(seeds=4)
    grown = function(table.assign(good=np.exp(20 * table["good"])), "good", "gap", AXES).draws
    np.testing.assert_array_equal(function(table, "good", "gap", AXES).draws, grown)


@pytest.mark.parametrize("function", [*ALL, errors])
def test_a_seed_gives_the_same_draws_and_leaves_everything_else_alone(function):
    table = ragged(seeds=6)
    before, state = table.copy(), np.random.get_state()[1].copy()
    first = function(table, MEASURES, "gap", AXES, seed=3)
    np.testing.assert_array_equal(first.draws, function(table, MEASURES, "gap", AXES, seed=3).draws)
    assert (first.draws[1:] != function(table, MEASURES, "gap", AXES, seed=4).draws[1:]).any()
    pd.testing.assert_frame_equal(table, before)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds):
    found = [
        (
            pooled_kendall(table, "good", "gap", AXES, bootstraps=50),
            granulated_kendall(table, "good", "gap", AXES, bootstraps=50),
        )
        for table in (grid(seeds=seeds, seed=1000 + k) for k in range(60))
    ]
    for rankings in zip(*found, strict=True):
        scores = pd.concat([ranking.scores for ranking in rankings])
        truth = scores["value"].mean()
        covered = ((scores["low"] <= truth) & (truth <= scores["high"])).mean()
        assert covered >= 0.85
        # not because they are too wide
        width = (scores["high"] - scores["low"]).mean() / 4
        assert width < 1.5 * scores["value"].std()


def test_quantiles_and_parts():
    support = pd.DataFrame({"used": [True, False, True]}, index=pd.Index(["a", "b", "c"], name="part"))
    draws = np.array([[[0.2], [0.4]], [[0.2], [np.nan]], [[0.2], [np.nan]]])
    ranking = Ranking(("m",), draws, support, "max", (0.0, 1.0), 0)
    assert ranking.scores["value"].tolist() == [0.4]
    assert ranking.quantile(0.25)["value"].tolist() == [pytest.approx(0.25)]
    # no draw holds the second part: nothing is known of its spread
    assert ranking.parts.loc[("c", "m")].tolist() == [0.4, 0, 1]
    assert ranking.parts.loc[("a", "m")].tolist() == [0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="share is 90"):
        ranking.quantile(90)


@pytest.mark.parametrize("function", [*ALL, errors])
@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"measures": ["good", "path"]}, "no column 'path'"),
        ({}, {"axes": ["width", "depth"]}, "no column 'depth'"),
        ({}, {"resample": "block"}, "no column 'block'"),
        ({}, {"axes": []}, "at least one axis"),
        ({}, {"measures": ["good", "good"]}, "each column once"),
        ({"lr": 0.1}, {}, "axes holds lr, of one value"),
        ({"good": 1.0}, {}, "good: the same value"),
        ({"gap": 0.1}, {}, "gap: the same value"),
        ({"good": [np.nan] + [1.0, 2.0, 3.0, 4.0, 5.0] * 7}, {}, r"NaN in good \(1 of 36\)"),
        ({"width": [np.nan] + [1.0, 2.0, 3.0, 4.0, 5.0] * 7}, {}, r"NaN in width \(1 of 36\)"),
        ({"gap": [np.inf] + [0.1, 0.2, 0.3, 0.4, 0.5] * 7}, {}, "infinite"),
        ({"good": "many"}, {}, "no column of numbers"),
        ({}, {"bootstraps": 1}, "at least 2 draws"),
        ({"one": 1}, {"resample": "one"}, "nothing to draw from"),
        ({"width": range(36)}, {"axes": ["width"]}, "no two networks agree"),
    ],
)
def test_refused(function, change, arguments, message):
    table = grid(seeds=6).assign(**change)
    with pytest.raises(ValueError, match=message):
        function(table, **{"measures": MEASURES, "gap": "gap", "axes": AXES} | arguments)


@pytest.mark.parametrize("function", [granulated_kendall, errors])
def test_axes_that_move_together_leave_nothing_to_compare(function):
    table = grid().query("(width == 32 and lr == 0.01) or (width == 64 and lr == 0.1)")
    with pytest.raises(ValueError, match="axes holds width, in which no two networks differ"):
        function(table, "good", "gap", AXES)


@pytest.mark.parametrize("rank", [*ALL, errors])
def test_a_jackknife_leaves_out_one_seed_at_a_time(rank):
    table = grid(seeds=6, noise=0.03)
    more = {"pooled": True} if rank is errors else {}
    found = rank(table, MEASURES, "gap", AXES, bootstraps="jackknife", resample="seed", **more)
    assert found.jackknife and len(found.draws) == 7
    for k, seed in enumerate(range(6), 1):
        rest = table[table["seed"] != seed]
        if rank is errors:  # whose environments and weights stay those of all seeds
            continue
        alone = rank(rest, MEASURES, "gap", AXES, bootstraps=0)
        np.testing.assert_allclose(found.draws[k], alone.draws[0], atol=1e-5)
    np.testing.assert_allclose(
        found.scores["value"], rank(table, MEASURES, "gap", AXES, bootstraps=0, **more).scores["value"]
    )
    assert (found.scores["low"] <= found.scores["high"]).all()


def test_pseudo_values_of_a_mean_are_the_units_and_give_student_s_interval():
    values = np.random.default_rng(0).normal(size=(6, 2))
    without = [np.delete(values, i, 0).mean(0) for i in range(6)]
    np.testing.assert_allclose(pseudo_values([values.mean(0), *without]), values)
    ranking = Ranking(
        ("a", "b"), np.stack([values.mean(0), *without])[:, None], pd.DataFrame(), "mean", (-9.0, 9.0), 0, True
    )
    low, high = interval(values[:, 1])
    assert ranking.scores.loc["b", "low"] == pytest.approx(low) and ranking.scores.loc["b", "high"] == pytest.approx(
        high
    )


def test_what_a_jackknife_cannot_leave_out_is_refused():
    table = grid()
    with pytest.raises(ValueError, match="resample is 'replicates'; a jackknife takes a column"):
        pooled_kendall(table, MEASURES, "gap", AXES, bootstraps="jackknife")
    with pytest.raises(ValueError, match="a column of 2 values; a jackknife takes at least three"):
        pooled_kendall(table, MEASURES, "gap", AXES, bootstraps="jackknife", resample="lr")
    with pytest.raises(ValueError, match="bootstraps is 'jack'"):
        pooled_kendall(table, MEASURES, "gap", AXES, bootstraps="jack", resample="seed")
    with pytest.raises(ValueError, match="give the value, and then that without each"):
        pseudo_values([1.0, 2.0, 3.0])
