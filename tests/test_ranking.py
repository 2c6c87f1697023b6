import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from genlib.ranking import (
    Ranking,
    conditional_mutual_information,
    environments,
    granulated_kendall,
    kendall,
    pooled_kendall,
    resolvable_difference,
    sign_errors,
)
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


def loop_information(rows, count, measure, given):
    """I(V_μ; V_g | U) / H(V_g | U) from a table of counts."""
    seen = Counter()
    for (a, ca), (b, cb) in itertools.permutations(list(zip(rows, count, strict=True)), 2):
        if a["gap"] != b["gap"]:
            cell = tuple((a[name], b[name]) for name in given)
            seen[cell, sign(a[measure] - b[measure]), sign(a["gap"] - b["gap"])] += ca * cb
    total = sum(seen.values())
    cells, of_measure, of_gap = Counter(), Counter(), Counter()
    for (cell, m, g), weight in seen.items():
        cells[cell] += weight
        of_measure[cell, m] += weight
        of_gap[cell, g] += weight
    information = sum(
        weight / total * math.log(weight * cells[cell] / (of_measure[cell, m] * of_gap[cell, g]))
        for (cell, m, g), weight in seen.items()
        if weight
    )
    entropy = -sum(w / total * math.log(w / cells[cell]) for (cell, _), w in of_gap.items() if w)
    return information / entropy if entropy > 1e-9 else None


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


@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_information_against_a_loop(resample):
    table = ragged(seeds=4)
    rows, counts = rows_and_counts(table, resample)
    found = conditional_mutual_information(table, MEASURES, "gap", AXES, bootstraps=3, resample=resample)
    assert list(found.support.index) == ["nothing", "width", "lr", "width, lr"]
    assert found.support["used"].all()
    for part, given_axes in enumerate([(), ("width",), ("lr",), ("width", "lr")]):
        for draw, count in enumerate(counts):
            expected = [loop_information(rows, count, measure, given_axes) for measure in MEASURES]
            np.testing.assert_allclose(found.draws[draw, part], expected, atol=1e-5)
    np.testing.assert_allclose(found.scores["value"], found.draws[0].min(0))
    assert (found.support["pairs"] == sum(a["gap"] != b["gap"] for a, b in itertools.combinations(rows, 2))).all()
    assert found.support["smallest"].to_dict() == {"nothing": 14, "width": 2, "lr": 5, "width, lr": 1}


def test_sets_of_axes_that_fix_the_order_are_left_out():
    table = grid(seeds=1)
    found = conditional_mutual_information(table, "noise", "gap", AXES, resample="networks")
    assert found.support["used"].to_dict() == {"nothing": True, "width": True, "lr": True, "width, lr": False}
    assert len(found.parts) == 3


def test_information_of_at_most_two_axes():
    table = grid(width=[32, 64], lr=[0.01, 0.1], batch=[16, 64], depth=[1, 2])
    support = conditional_mutual_information(table, "good", "gap", ["width", "lr", "batch", "depth"]).support
    assert len(support) == 1 + 4 + 6


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_sign_errors_against_a_loop(pooled, resample):
    table = ragged(seeds=8).assign(gap=lambda t: t["gap"] + 0.07 * np.log2(t["width"]) - 0.5)
    table = table.astype({"width": float})
    rows, counts = rows_and_counts(table, resample)
    found = errors(table, MEASURES, "gap", AXES, pooled=pooled, bootstraps=3, resample=resample)

    def weight(a, b):
        certain = max(0, 1 - 2 * math.exp(-2 * 10_000 * ((a["gap"] - b["gap"]) / 2) ** 2)) ** 2
        return max(0, certain - 0.5)

    used = []
    for axis, other in (("width", "lr"), ("lr", "width")):
        for low, high in itertools.combinations(sorted(set(table[axis])), 2):
            for at in [None] if pooled else sorted(set(table[other])):
                compared = step(axis, other, at=at, ends=(low, high), weight=weight)
                weights = np.array([compared(a, b) for a, b in itertools.combinations(rows, 2)])
                if weights.any() and weights.sum() ** 2 / (weights**2).sum() >= 12:
                    used.append(f"{axis}: {low} → {high}" + ("" if pooled else f" at {other} = {at}"))
                    for draw, count in enumerate(counts):
                        taus = [loop_tau(rows, count, measure, compared) for measure in MEASURES]
                        expected = [np.nan if tau is None else (1 - tau) / 2 for tau in taus]
                        np.testing.assert_allclose(found.draws[draw, len(used) - 1], expected, atol=1e-9)
    assert used == list(found.support.index[found.support["used"]])
    assert 0 < len(used) < len(found.support)
    np.testing.assert_allclose(found.scores["value"], found.draws[0].max(0))
    np.testing.assert_allclose(found.quantile(0.5)["value"], np.median(found.draws[0], 0))


def test_environments_of_few_test_samples_fall_away():
    table = grid(seeds=6)
    used = {n: environments(table, "gap", AXES, test_samples=n)["used"].sum() for n in (200, 1000, 100_000)}
    assert used[200] < used[1000] < used[100_000] == 4
    with pytest.raises(ValueError, match=r"none of 4 environments .* differ by 0\.277"):
        errors(table, "good", "gap", AXES, test_samples=50)


def test_an_environment_at_one_setting_needs_four_seeds_a_side():
    for seeds, used in ((3, 0), (4, 12)):
        axes = {"width": [32, 64, 128, 256], "lr": [0.01, 0.1]}
        table = grid(seeds=seeds, noise=1e-4, **axes)
        found = environments(table, "gap", ["width", "lr"], test_samples=10_000_000, pooled=False)
        of_width = found[found["axis"] == "width"]
        assert len(of_width) == 12 and of_width["used"].sum() == used
        np.testing.assert_allclose(of_width["effective"], seeds**2, rtol=1e-6)


def test_the_resolvable_difference_is_where_the_weight_begins():
    for n in (500, 10_000):
        difference = resolvable_difference(n)
        assert (1 - 2 * math.exp(-2 * n * (difference / 2) ** 2)) ** 2 == pytest.approx(0.5)
        assert difference == pytest.approx(math.sqrt(3.84 / n), rel=1e-3)


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


def test_draws_are_within_configurations_or_whole_seeds():
    table = grid(seeds=5)
    rows, counts = rows_and_counts(table, "replicates", bootstraps=20)
    totals = pd.DataFrame(rows).assign(count=counts[1]).groupby(AXES)["count"].sum()
    np.testing.assert_allclose(totals, 5)
    rows, counts = rows_and_counts(table, "seed", bootstraps=20)
    assert (pd.DataFrame(rows).assign(count=counts[1]).groupby("seed")["count"].nunique() == 1).all()
    _, counts = rows_and_counts(table, "networks", bootstraps=20)
    np.testing.assert_allclose(counts.sum(1), len(table))


@pytest.mark.parametrize("seeds", [2, 5])
def test_draws_spread_a_mean_as_its_standard_error_says(seeds):
    # ordinary draws of r out of r would fall short by (r - 1) / r, half of the variance at two seeds
    rows, counts = rows_and_counts(grid(seeds=seeds), bootstraps=2000)
    of_one = [row["width"] == 64 and row["lr"] == 0.1 for row in rows]
    values = np.array([row["noise"] for row in rows])[of_one]
    means = counts[1:, of_one] @ values / counts[1:, of_one].sum(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.1)


@pytest.mark.parametrize(
    ("function", "networks"),
    [(pooled_kendall, 2), (granulated_kendall, 16), (conditional_mutual_information, 2), (errors, 16)],
)
def test_draws_without_a_pair_are_refused(function, networks):
    table = pd.DataFrame({"width": [1, 2] * 8, "seed": [0, 1] * 8, "gap": np.linspace(0.1, 0.9, 16)})
    table = table.assign(good=-table["gap"]).head(networks)
    with pytest.raises(ValueError, match="resample leaves draws"):
        function(table, "good", "gap", "width", resample="seed")


def test_configurations_of_one_network_are_counted():
    assert granulated_kendall(ragged(), "good", "gap", AXES).unvaried == 2
    assert granulated_kendall(grid(), "good", "gap", AXES).unvaried == 0


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


def test_gaps_in_percent_are_refused():
    with pytest.raises(ValueError, match="not in percent"):
        environments(grid().assign(gap=lambda t: 100 * t["gap"]), "gap", AXES, test_samples=1000)
    with pytest.raises(ValueError, match="test_samples is 0"):
        environments(grid(), "gap", AXES, test_samples=0)
