"""Claims in parts: criteria against brute force, verdicts and corrections by hand, power against theory, the record."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from genlib import scale
from genlib.book import claims, criteria, inference
from genlib.book.claims import Claims, ours, paper, shown
from genlib.book.criteria import Criterion
from genlib.book.parts import Effect

RNG = np.random.default_rng(0)
NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
EFFECTS = st.lists(NUMBERS, min_size=3, max_size=8)
CLEAR, AROUND_ZERO = [1.0, 1.1, 0.9], [0.5, -0.5, 0.1]


@pytest.fixture
def chapter(tmp_path):
    return Claims("01_test", folder=tmp_path)


@pytest.fixture
def recorded(monkeypatch):
    """Writes a chapter's record."""

    def write(chapter):
        monkeypatch.setenv("GENLIB_RECORD", "1")
        said = chapter.check()
        monkeypatch.delenv("GENLIB_RECORD")
        return said

    return write


def state(chapter, parts=None, *, id="paper.1", count=3, source="Section 2", **others):
    parts = parts or paper("the effect is above 0", smallest=0.2)
    return chapter.state(id, "Nets memorize.", source=source, seeds=scale.seeds(count), parts=parts, **others)


def table(rows, seeds=6, ties=False):
    values = RNG.standard_normal((rows, seeds))
    return pd.DataFrame(values.round(0) if ties else values, index=np.arange(rows) ** 2 + 1.0)


# The criteria, against scipy


@pytest.mark.parametrize("ties", [False, True])
def test_tau_is_kendalls(ties):
    of = table(5, ties=ties)
    expected = [stats.kendalltau(of.index, of[seed]).statistic for seed in of]
    assert criteria.tau(of).effects == pytest.approx(np.nan_to_num(expected))


def test_tau_of_what_is_all_tied_is_zero():
    assert criteria.tau(pd.DataFrame(np.ones((4, 3)))).effects == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_spearmans(ties):
    x, y = table(7, ties=ties), table(7, ties=ties)
    expected = [stats.spearmanr(x[seed], y[seed]).statistic for seed in x]
    assert criteria.rank_correlation(x, y).effects == pytest.approx(expected)


def test_rank_correlation_with_a_constant_is_zero():
    assert criteria.rank_correlation(np.ones((5, 3)), table(5, 3)).effects == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("log_index", [False, True])
def test_slope_is_that_of_linregress(log_index):
    of = table(6)
    x = np.log(of.index) if log_index else of.index
    expected = [stats.linregress(x, of[seed]).slope for seed in of]
    assert criteria.slope(of, log_index=log_index).effects == pytest.approx(expected)


def test_the_other_criteria_are_what_they_say():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0])
    assert criteria.value(x, above=1.5).effects.tolist() == [-0.5, 0.5, 2.5]
    assert criteria.difference(x, y).effects.tolist() == [-1, 1, 3]
    assert criteria.log_ratio(x, y).effects == pytest.approx(np.log(x / y))
    of = table(4)
    expected = of.min().tolist()
    assert criteria.smallest(of).effects.tolist() == expected
    assert criteria.smallest({row: of.loc[row] for row in of.index}).effects.tolist() == expected


@given(st.lists(NUMBERS, min_size=12, max_size=12))
def test_trends_turn_with_the_values_and_keep_their_range(values):
    of, other = pd.DataFrame(np.reshape(values, (4, 3))), pd.DataFrame(np.arange(12).reshape(4, 3) % 5)
    for make in (criteria.tau, criteria.slope, lambda t: criteria.rank_correlation(t, other)):
        assert make(-of).effects == pytest.approx(-make(of).effects)
        assert make is criteria.slope or (np.abs(make(of).effects) <= 1 + 1e-12).all()


# The criteria, run on simulated quantities

CASES = {
    "value": criteria.value(RNG.normal(0.2, 0.3, 8)),
    "difference": criteria.difference(RNG.normal(1, 0.3, 8), RNG.normal(0.5, 0.2, 8)),
    "slope": criteria.slope(table(5, 8)),
    "tau": criteria.tau(table(5, 8)),
    "smallest": criteria.smallest(table(3, 8)),
    "rank correlation": criteria.rank_correlation(table(20, 8), table(20, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_simulated_quantities_have_the_effect_that_was_asked_for(name):
    for effect in (0.1, 0.4):
        assert CASES[name].simulated(effect).mean() == pytest.approx(effect, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name != "smallest"])
def test_without_an_effect_hardly_a_verdict_falls(name):
    rates = inference.rates(CASES[name].simulated(0.0, draws=20_000), 0.001)
    assert rates == pytest.approx((0.025, 0.025), abs=0.006)  # four standard errors


def test_a_minimum_has_no_effect_where_the_least_of_its_means_is_zero_and_is_biased_down():
    effects = criteria.smallest(pd.DataFrame(RNG.standard_normal((3, 8)) * 0.1)).simulated(0.0)
    assert effects.mean() < 0
    reproduced, contradicted = inference.rates(effects, 0.01)
    assert reproduced < 0.01 and contradicted > 0.07


@pytest.mark.parametrize("name", ["value", "difference", "slope"])
def test_simulated_quantities_have_the_covariance_of_the_quantities(name):
    of = CASES[name]
    assert of.simulated(0.3, draws=20_000).std() == pytest.approx(of.effects.std(ddof=1), rel=0.02)


def test_rank_correlations_vary_between_seeds_as_they_do_here():
    of = CASES["rank correlation"]
    spread = np.arctanh(of.simulated(0.2, draws=20_000)).std()
    assert spread == pytest.approx(np.arctanh(of.effects).std(ddof=1), rel=0.02)


def test_a_perfect_rank_correlation_has_a_place_on_fishers_scale():
    x = table(4, 3)
    assert np.isfinite(criteria.rank_correlation(x, x).simulated(0.3)).all()
    assert np.isfinite(criteria.rank_correlation(x[:1], x[:1]).simulated(0.0)).all()


@pytest.mark.parametrize("smallest", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("name", ["value", "difference", "slope"])
def test_power_is_that_of_the_noncentral_t(name, smallest):
    of, draws = CASES[name], 20_000
    n, s = len(of.effects), of.effects.std(ddof=1)
    most = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(most, n - 1, smallest * n**0.5 / s) - _within(smallest, n, s)
    found = inference.rates(of.simulated(smallest, draws=draws), smallest)[0]
    assert found == pytest.approx(power, abs=4 * (power * (1 - power) / draws) ** 0.5 + 1e-3)


def _within(smallest, n, s):
    """The chance that an interval lies between 0 and `smallest`, where that is the mean: no verdict `reproduced`."""
    factor, of_mean = stats.t.ppf(0.975, n - 1) / n**0.5, stats.norm(smallest, s / n**0.5)

    def at(sd):
        half = factor * sd
        density = stats.chi2.pdf((n - 1) * sd**2 / s**2, n - 1) * 2 * (n - 1) * sd / s**2
        return density * max(of_mean.cdf(smallest - half) - of_mean.cdf(half), 0)

    return integrate.quad(at, 0, smallest / factor / 2)[0]


def test_effects_without_variance_have_full_power():
    for smallest in (0.002, 0.01, 0.1, 0.3):
        for value in (0.01, 0.7):
            of = criteria.value([value] * 7)
            assert inference.rates(of.simulated(smallest), smallest) == (1, 0)
            assert inference.rates(of.simulated(0.0), smallest) == (0, 0)


def test_the_draws_repeat():
    for of in CASES.values():
        assert (of.simulated(0.1) == of.simulated(0.1)).all()


def test_a_criterion_comes_back_from_its_record():
    for of in CASES.values():
        kept = json.loads(json.dumps({"name": of.name, "quantities": of.quantities.tolist(), "grid": of.grid}))
        assert Criterion.of_record(kept).effects.tolist() == of.effects.tolist()


# Intervals, verdicts, p-values, corrections


@given(EFFECTS)
def test_interval_is_student_t_and_keeps_to_the_bounds(values):
    assume(np.ptp(values) > 0)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert inference.bounded_interval(values) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert inference.bounded_interval(values, (-1.0, 1.0)) == pytest.approx((max(low, -1), min(high, 1)), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (CLEAR, "reproduced"),
        ([-1.0, -1.1, -0.9], "contradicted"),
        (AROUND_ZERO, "open"),
        ([0.01, -0.02, 0.0], "no effect of interest"),
        ([0.05, 0.06, 0.055], "no effect of interest"),  # clearly above zero, and too small to matter
        ([-0.05, -0.06, -0.055], "no effect of interest"),
        ([0.19, 0.2, 0.21], "reproduced"),
        ([0.5, 0.5, 0.5], "reproduced"),
        ([0.0, 0.0, 0.0], "no effect of interest"),
    ],
)
def test_the_verdicts_of_a_part(values, verdict):
    assert inference.verdict(values, 0.2) == verdict


@given(EFFECTS, st.floats(0.01, 50))
def test_verdicts_turn_with_the_effects_and_do_not_hang_on_the_unit(values, smallest):
    assume(np.ptp(values) > 0)
    other = {"reproduced": "contradicted", "contradicted": "reproduced"}
    found = inference.verdict(values, smallest)
    assert inference.verdict([-x for x in values], smallest) == other.get(found, found)
    assert inference.verdict([4 * x for x in values], 4 * smallest) == found
    assert found == "no effect of interest" or inference.verdict(values, smallest / 2) == found


@given(EFFECTS, st.floats(0.01, 50))
def test_p_is_at_most_5_percent_where_the_interval_decides(values, smallest):
    assume(np.ptp(values) > 0)
    p = inference.p_value(values, smallest)
    assert 0 <= p <= 1 and (abs(p - 0.05) < 1e-9 or (p < 0.05) == (inference.verdict(values, smallest) != "open"))


def test_p_is_students_or_of_two_one_sided_tests():
    values = [0.3, 0.1, 0.25, 0.4]
    assert inference.p_value(values, 0.2) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    values = [0.05, -0.01, 0.02, 0.03]
    above = stats.ttest_1samp(values, -0.2, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.2, alternative="less").pvalue
    assert inference.p_value(values, 0.2) == pytest.approx(2 * max(above, below))
    for same in ([0.1] * 3, [0.01] * 5, [0.0] * 3):
        assert inference.p_value(same, 0.2) is None  # no t-test of values without spread


def test_holm_by_hand():
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert inference.holm([0.04]) == pytest.approx([0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_as_stepping_down_does(p):
    rejected = set()
    for left, index in zip(range(len(p), 0, -1), np.argsort(p), strict=True):
        if p[index] * left > 0.05:
            break
        rejected.add(index)
    adjusted = inference.holm(p)
    assert set(np.flatnonzero(adjusted <= 0.05)) == rejected
    assert (adjusted >= np.array(p)).all() and (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert (stats.false_discovery_control(p) <= adjusted + 1e-12).all()


@given(EFFECTS, EFFECTS, st.sampled_from([0.05, 1e-3]))
def test_runs_differ_by_welchs_test(one, other, level):
    assume(np.ptp(one) > 0.1 and np.ptp(other) > 0.1)
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    assume(abs(p - level) > 1e-9)
    assert inference.differ(one, other, level) == (p < level)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ([0.1] * 3, [0.1] * 5, False),
        ([0.1] * 3, [0.3] * 7, True),
        ([0.0] * 3, [0.0] * 3, False),
        ([0.1] * 3, [0.1, 0.2, 0.0], False),
    ],
)
def test_runs_without_variance_differ_where_their_numbers_do(one, other, differ):
    assert inference.differ(one, other, 1e-3) == differ


# Parts and claims


def test_parts_are_described_in_a_line():
    assert paper("it rises", smallest=0.1).described("") == "it rises; smallest effect of interest 0.1"
    assert paper("it rises", smallest=0.1).described("up") == "*up*: it rises; smallest effect of interest 0.1"
    assert ours("it rises", smallest=0.1).described("") == "(our question): it rises; smallest effect of interest 0.1"
    assert shown("it rises").described("up") == "*up* (shown): it rises"
    assert shown("it rises", whose="ours").described("up") == "*up* (our question, shown): it rises"


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (paper("it rises"), "smallest is None; give the smallest effect of interest, a positive number"),
        (ours("it rises"), "smallest is None"),
        *((paper("it rises", smallest=bad), "a positive number") for bad in (0.0, -0.1, math.inf, math.nan)),
        (paper("it rises", smallest=0.1, bounds=(0.5, 1)), "an effect of 0 must lie within"),
        (ours("accuracy above 0.99", smallest=0.1, bounds=(-0.99, 0.01)), "0.1, beyond what the effect can be"),
        (paper("it rises", smallest=0.02, bounds=(-0.01, 1)), "0.02, beyond what the effect can be"),
    ],
)
def test_a_part_that_decides_nothing_is_refused_with_the_claims_id(chapter, part, fault):
    stated = {"source": "Section 2", "seeds": [0, 1, 2]}
    with pytest.raises(ValueError, match=rf"^paper\.1: .*{fault}"):
        chapter.state("paper.1", "It rises.", parts=part, **stated)
    with pytest.raises(ValueError, match=rf"^paper\.1 \(up\): .*{fault}"):
        chapter.state("paper.1", "It rises.", parts={"up": part}, **stated)


def test_an_effect_knows_its_mean_interval_power_and_p():
    values = (0.3, 0.1, 0.25, 0.4, 0.2)
    effect = Effect(paper("it rises", smallest=0.2, bounds=(-1, 0.3)), values, criteria.value(values))
    assert effect.mean == pytest.approx(0.25)
    assert effect.interval == (pytest.approx(stats.t.interval(0.95, 4, 0.25, stats.sem(values))[0]), 0.3)
    assert effect.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert effect.power == inference.rates(effect.of.simulated(0.2), 0.2)[0]
    of_theorem = Effect(shown("it holds"), values, criteria.value(values))
    assert (of_theorem.verdict, of_theorem.power, of_theorem.p) == ("shown", None, None)


P, O, S = paper("p", smallest=0.2), ours("o", smallest=0.2), shown("s")  # noqa: E741
NOT, NONE = [-1.0, -1.1, -0.9], [0.01, -0.02, 0.0]


@pytest.mark.parametrize(
    ("parts", "effects", "verdict"),
    [
        ({"a": P, "b": P}, {"a": CLEAR, "b": CLEAR}, "reproduced"),
        ({"a": P, "b": P}, {"a": CLEAR, "b": NOT}, "partly"),
        ({"a": P, "b": P}, {"a": CLEAR, "b": NONE}, "partly"),
        ({"a": P, "b": P}, {"a": AROUND_ZERO, "b": NOT}, "contradicted, open"),
        ({"a": P, "b": P}, {"a": NOT, "b": NOT}, "contradicted"),
        ({"a": P, "b": O}, {"a": CLEAR, "b": NOT}, "reproduced"),
        ({"a": P, "b": O}, {"a": NONE, "b": CLEAR}, "no effect of interest"),
        ({"a": P, "b": S}, {"a": AROUND_ZERO, "b": CLEAR}, "open"),
        ({"a": S, "b": O}, {"a": CLEAR, "b": NOT}, "shown"),
        ({"a": O}, {"a": NOT}, "our question"),
        ({"a": shown("s", whose="ours")}, {"a": CLEAR}, "our question"),
    ],
)
def test_the_verdict_of_a_claim_is_that_of_the_papers_parts(chapter, parts, effects, verdict):
    claim = state(chapter, parts)
    assert claim.verdict == "undecided"
    assert claim.decide(effects) == verdict == claim.verdict


def test_criteria_and_series_decide_too(chapter):
    claim = state(chapter, {"a": P, "b": P})
    series = pd.Series([2.0, 1.0, 1.1, 0.9], index=[7, 2, 1, 0])
    claim.decide({"a": criteria.difference([2.0, 2.1, 2.2], [1.0, 1.0, 1.0]), "b": series})
    assert claim.effects["a"].of.name == "difference"
    assert claim.effects["b"].values == (0.9, 1.1, 1.0), "by seed, whatever the order, and no other seed"


def test_a_claim_shows_its_parts(chapter):
    text = state(chapter, {"a": P, "b": S}, recalled=True)._repr_markdown_()
    assert text.startswith(
        "**Claim `paper.1`** (Section 2, recalled). Nets memorize.\n\nDecided on 3 seeds:\n\n- *a*: p"
    )
    assert "- p; smallest effect of interest 0.2" in state(chapter, P, id="paper.2")._repr_markdown_()


@pytest.mark.parametrize(
    ("effects", "message"),
    [
        ([1.0, math.nan, 1.0], "paper.1, paper.1: 1 of 3 effects are not finite"),
        ([1.0, 1.0], "2 effects for 3 seeds; no seed may be left out"),
        ([1.0] * 4, "4 effects for 3 seeds"),
        ({"other": CLEAR}, r"effects are named \['other'\], the parts \['paper\.1'\]"),
    ],
)
def test_effects_that_decide_nothing_are_refused(chapter, effects, message):
    with pytest.raises(ValueError, match=message):
        state(chapter).decide(effects)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_network_that_is_lost_is_not_taken_for_a_trend_of_zero(chapter, lost, monkeypatch):
    of = table(4, 3)
    of.iloc[1, 2] = lost
    with pytest.raises(
        ValueError, match=r"paper\.1, paper\.1: 1 of the 12 numbers that its effects are made of are not"
    ):
        state(chapter).decide(criteria.tau(of))
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    state(chapter, id="paper.2", count=2).decide(criteria.tau(of.iloc[:, 1:]))


def test_what_holds_by_a_theorem_must_hold(chapter, monkeypatch):
    claim = state(chapter, S)
    with pytest.raises(AssertionError, match=r"holds by a theorem, and the smallest of its effects is -0\.1"):
        claim.decide([1.0, -0.1, 1.0])
    assert claim.decide(CLEAR) == "shown"
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    state(chapter, S, id="paper.2").decide([-0.1, 1.0])


def test_a_claim_is_stated_once_with_its_place_and_all_its_seeds(chapter):
    state(chapter)
    with pytest.raises(ValueError, match=r"paper\.1 is stated already; a criterion does not change"):
        state(chapter)
    with pytest.raises(ValueError, match="source is 'the paper'; name the section, theorem, figure or table"):
        state(chapter, id="paper.2", source="the paper")
    for seeds in ([0, 2, 3], [0, 1], [1000, 1001, 1002]):
        with pytest.raises(ValueError, match=r"give scale\.seeds\(count\) of at least 3, and leave none out"):
            chapter.state("paper.2", "Nets.", source="Table 1", seeds=seeds, parts=P)
    with pytest.raises(ValueError, match=r"paper\.2: no parts"):
        chapter.state("paper.2", "Nets.", source="Table 1", seeds=[0, 1, 2], parts={})


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("Section 2", True),
        ("Sections 3.1 and 3.2", True),
        ("Theorem 1, proof in Appendix B", True),
        ("Appendix B", True),
        ("Table A.1", True),
        ("Figures 2 to 4", True),
        ("Introduction", True),
        ("Equation (3)", True),
        ("the discussion of norms", False),
        ("Section", False),
        ("a table", False),
    ],
)
def test_a_source_names_a_place(source, names):
    assert bool(claims.PLACE.search(source)) == names


# The record


def test_the_record_keeps_what_the_verdict_came_from(chapter, recorded, tmp_path):
    claim = state(chapter, {"a": paper("it rises", smallest=0.2, bounds=(-math.inf, 2)), "s": S}, count=5)
    x, y = RNG.normal(1, 0.1, 5), RNG.normal(0, 0.1, 5)
    claim.decide({"a": criteria.difference(x, y), "s": [1.0] * 5}, figure="fig-x")
    assert "no record at scale small yet" in chapter.check()
    assert recorded(chapter) == f"wrote {chapter.path}"
    assert chapter.check() == "2 of 2 verdicts are those of the record"
    entry = json.loads(chapter.path.read_text())["claims"][0]
    assert {key: entry[key] for key in ("id", "source", "recalled", "seeds", "verdict", "figure")} == {
        "id": "paper.1",
        "source": "Section 2",
        "recalled": False,
        "seeds": [0, 1, 2, 3, 4],
        "verdict": "reproduced",
        "figure": "fig-x",
    }
    part = entry["parts"]["a"]
    assert (part["criterion"], part["whose"], part["shown"], part["smallest"]) == ("it rises", "paper", False, 0.2)
    assert part["bounds"] == [None, 2]
    assert part["values"] == pytest.approx(x - y, rel=1e-6)
    assert part["interval"] == pytest.approx(inference.bounded_interval((x - y).tolist(), (-math.inf, 2)), rel=1e-6)
    again = Criterion.of_record(part["of"])
    assert again.effects == pytest.approx(x - y, rel=1e-6)
    assert inference.rates(again.simulated(0.2), 0.2)[0] == pytest.approx(part["power"], abs=2e-3)
    assert (entry["parts"]["s"]["power"], entry["parts"]["s"]["p"], entry["parts"]["s"]["smallest"]) == (None,) * 3
    row = claims.records(tmp_path).loc[0]
    assert (row["chapter"], row["scale"], row["genlib"]) == ("01_test", "small", scale.sources_hash())


def test_claims_of_a_record_are_in_order_of_their_numbers(chapter, recorded):
    for number in (10, 9, 1):
        state(chapter, id=f"paper.{number}").decide(CLEAR)
    recorded(chapter)
    kept = [claim["id"] for claim in json.loads(chapter.path.read_text())["claims"]]
    assert kept == ["paper.1", "paper.9", "paper.10"]


@pytest.mark.parametrize(
    ("effects", "agrees"),
    [
        ([0.95, 1.0, 1.05], True),
        ([0.3, 1.0, -0.2], True),  # open, on a mean that Welch's test does not tell from the record's
        ([0.0, 0.01, -0.01], False),  # no effect of interest, and far from the record
        ([-0.98, -1.0, -1.02], False),
    ],
)
def test_a_verdict_may_differ_only_where_the_means_agree(chapter, recorded, effects, agrees):
    claim = state(chapter, {"a": P, "b": P})
    claim.decide({"a": [0.99, 1.0, 1.01], "b": [1.9, 2.0, 2.1]})
    recorded(chapter)
    claim.decide({"a": effects, "b": [1.9, 2.0, 2.1]})
    if not agrees:
        with pytest.raises(
            AssertionError, match=r"disagrees with this run:\npaper\.1 \(a\): recorded reproduced, here"
        ):
            chapter.check()
        return
    said = chapter.check()
    assert "of 2 verdicts are those of the record" in said
    assert ("On means that agree within their seeds: paper.1 (a): recorded" in said) == said.startswith("1 of 2")


def test_the_level_is_shared_by_all_parts_of_a_chapter(chapter, recorded):
    def effects(mean):
        return [mean + x for x in (-0.1, 0.0, 0.1, -0.05, 0.05)]

    one, other = effects(0.3), effects(0.04)
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    assert claims.FALSE_ALARMS / 20 < p < claims.FALSE_ALARMS
    for count, stops in ((1, True), (20, False)):
        chapter.claims.clear()
        for number in range(count):
            state(chapter, paper("e", smallest=0.1), id=f"paper.{number}", count=5).decide(one)
        recorded(chapter)
        chapter["paper.0"].decide(other)
        if stops:
            with pytest.raises(AssertionError, match=r"paper\.0: recorded reproduced, here open"):
                chapter.check()
        else:
            assert "19 of 20" in chapter.check()


def test_parts_that_came_went_or_changed_their_name_are_noticed(chapter, recorded):
    state(chapter, {"a": P}).decide({"a": CLEAR})
    recorded(chapter)
    chapter.claims.clear()
    state(chapter, {"b": P}).decide({"b": CLEAR})
    with pytest.raises(AssertionError, match=r"differ in paper\.1 \(a\), paper\.1 \(b\)"):
        chapter.check()
    chapter.claims.clear()
    with pytest.raises(AssertionError, match=r"differ in paper\.1 \(a\)"):
        chapter.check()


@pytest.mark.parametrize(
    "part",
    [
        ours("the effect is above 0", smallest=0.2),
        paper("the effect is above 0", smallest=0.1),
        paper("the effect is above 0", smallest=0.2, bounds=(-1, 1)),
        shown("the effect is above 0"),
    ],
)
def test_a_part_that_was_stated_otherwise_in_the_record_is_noticed(chapter, recorded, part):
    state(chapter).decide([0.4, 0.5, 0.6])
    recorded(chapter)
    chapter.claims.clear()
    state(chapter, part).decide([0.4, 0.5, 0.6])
    with pytest.raises(AssertionError, match=r"with another whose, shown, smallest, bounds of paper\.1: `make record`"):
        chapter.check()


def test_a_claim_that_was_not_decided_is_noticed(chapter):
    state(chapter)
    with pytest.raises(ValueError, match=r"paper\.1: stated, not decided"):
        chapter.check()


def test_a_dry_run_records_and_compares_nothing(chapter, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    monkeypatch.setenv("GENLIB_RECORD", "1")
    state(chapter).decide([1.0, -1.0])
    state(chapter, id="paper.2", count=1).decide([0.0])
    assert chapter.check() == "a dry run decides nothing"
    assert len(chapter.table()) == 2
    assert not chapter.path.exists()


# Sentences of the text, and the table


def test_a_sentence_stops_the_run_at_the_seeds_of_the_text_alone(chapter, monkeypatch):
    chapter.guard(True, "errors are large")
    with pytest.raises(AssertionError, match=r"01_test: the text says that pigs fly; this run says otherwise"):
        chapter.guard(False, "pigs fly")
    monkeypatch.setenv("GENLIB_SEED", "1")
    chapter.guard(False, "pigs fly")
    state(chapter).decide(CLEAR)
    assert chapter.unmet == ["pigs fly"], "its figures are tried in test_faults, where no type check stands between"


def test_unmet_sentences_are_listed_beside_the_verdicts(chapter, recorded, monkeypatch):
    monkeypatch.setenv("GENLIB_SEED", "1")
    state(chapter).decide(CLEAR)
    recorded(chapter)
    chapter.guard(False, "pigs fly")
    assert chapter.check().splitlines() == [
        "1 of 1 verdicts are those of the record",
        "At these seeds it does not hold that pigs fly",
    ]


def test_a_dry_run_passes_every_sentence(chapter, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    chapter.guard(False, "pigs fly")
    assert chapter.unmet == []


def test_the_table_has_a_row_a_part(chapter):
    state(chapter, {"a": P, "b": O, "c": S}).decide({"a": AROUND_ZERO, "b": [1.0, 1.1, 0.9], "c": CLEAR})
    state(chapter, P, id="paper.2").decide(CLEAR)
    found = chapter.table()
    assert list(found.index) == [("paper.1", "a"), ("paper.1", "b"), ("paper.1", "c"), ("paper.2", "")]
    assert found["verdict"].tolist() == ["open, too small to see with these seeds", "reproduced", "shown", "reproduced"]
    assert found["whose"].tolist() == ["the paper's", "our question", "the paper's", "the paper's"]
    assert found["of the claim"].tolist() == ["open"] * 3 + ["reproduced"]
    assert found["smallest of interest"].tolist() == ["0.2", "0.2", "", "0.2"]
    assert found["power"].iloc[2] == "" and found["power"].iloc[0].endswith("%")
    assert list(chapter.table("paper.2").index) == [("paper.2", "")]
    assert chapter.table("paper.3").empty


def test_records_of_an_older_form_are_named(chapter):
    state(chapter).decide(CLEAR)
    chapter.path.write_text(json.dumps({"environment": {}, "claims": [{"id": "paper.1", "verdicts": {}}]}))
    for read in (chapter.check, lambda: claims.records(chapter.path.parent)):
        with pytest.raises(ValueError, match=r"01_test\.small\.json: a record of an older form, without parts"):
            read()


def test_series_are_aligned_by_their_seeds_and_none_is_lost(chapter):
    seeds = [0, 1, 2]
    x = pd.Series([1.0, 2.0, 4.0], index=[0, 1, 2])
    y = pd.Series([4.0, 2.0, 1.0], index=[2, 1, 0])
    assert criteria.difference(x, y).effects.tolist() == [0, 0, 0]
    more = pd.Series([9.0, 1.0, 2.0, 4.0], index=[3, 0, 1, 2])
    claim = chapter.state(
        "paper.7", "It grows.", source="Section 1", seeds=seeds, parts=paper("x above 0", smallest=0.1)
    )
    claim.decide(more)
    assert claim.effects["paper.7"].values == (1.0, 2.0, 4.0)
    table = pd.DataFrame([[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]], index=[1, 2], columns=[0, 2, 5])
    other = pd.Series([1.0, 2.0, 4.0], index=[0, 2, 5])
    for measured in (other, criteria.value(other), criteria.difference(other, 0 * other), criteria.slope(table)):
        with pytest.raises(ValueError, match=r"paper\.7.*no effect at the seeds \[1\]"):
            claim.decide(measured)
    with pytest.raises(ValueError, match="other seeds than each other"):
        criteria.difference(x, other)
