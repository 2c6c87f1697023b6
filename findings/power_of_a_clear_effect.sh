#!/usr/bin/env bash
# statsmodels 0.15.0 on scipy 1.17.1: the power of a t-test, where the effect is clear, is often not a number.
#
# Expected: the power of a test rises with the effect, to one. To ask for it at an effect of three standard deviations
#   with 25 seeds is a formality.
# Seen: nan, and on both sides of it the right number: at 25 observations from an effect of 1.8 standard deviations on,
#   for about every second effect; at 100 from 0.9 on. The power of a two-sided test adds the chance to end below the
#   lower critical value to that of ending above the upper one. The first is tiny there, and scipy's cdf of the
#   noncentral t distribution gives nan for it. The chance that matters is right wherever it was looked at.
#   solve_power, which looks for a number of observations, passes such places: it gives up with nan and a warning where
#   the answer is between two and three observations. pingouin 0.7.0 leaves the nan out of its sum: 1.
# Why it matters: seeds of an experiment are few and effects between networks often large. A table of powers over effects
#   has holes where the answer is one; the mean of such a table and every comparison with 0.8 follow them.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    statsmodels==0.15.0 pingouin==0.7.0 scipy==1.17.1 numpy==2.4.6

"$folder/env/bin/python" -W ignore - <<'PY'
import numpy as np
import pingouin
from scipy import stats
from statsmodels.stats.power import TTestPower

power = TTestPower().power
for n, effects in ((25, (1.7, 1.8, 1.9, 2.0, 2.1, 3.0, 3.1)), (100, (0.8, 0.9, 0.95, 1.0, 1.1, 1.2))):
    found = [float(power(effect, n, 0.05)) for effect in effects]
    print(f"{n} observations:", ", ".join(f"{e}: {p:.4f}" for e, p in zip(effects, found, strict=True)))
    assert any(np.isnan(found)) and all(p > 0.999999 for p in found if not np.isnan(p))

upper, effects = stats.t.isf(0.025, 24), np.arange(1.8, 8, 0.1)
above, below = stats.nct.sf(upper, 24, 5 * effects), stats.nct.cdf(-upper, 24, 5 * effects)
missing = f"{np.isnan(below).sum()} of {len(below)}"
print(f"above: from {above.min():.6f}; below: {missing} are not a number, the others at most {np.nanmax(below):.0e}")
assert above.min() > 0.999999 and np.isnan(below).sum() > 10 and np.nanmax(below) < 1e-6

draws = np.random.default_rng(0).normal(1.8, 1.0, (20_000, 25))
t = draws.mean(1) / (draws.std(1, ddof=1) / 5)
print(f"simulated: above {np.mean(t > upper):.4f}, below {np.mean(t < -upper):.4f}")
assert np.mean(t > upper) > 0.9999

share = np.isnan([power(effect, 25, 0.05) for effect in effects]).mean()
print(f"not a number: {share:.0%} of the effects from 1.8 to 8 at 25 observations")
assert 0.3 < share < 0.8

by_pingouin = pingouin.power_ttest(d=1.8, n=25, contrast="one-sample")
solved = TTestPower().solve_power(effect_size=6.0, alpha=0.05, power=0.8)
n = pingouin.power_ttest(d=6.0, power=0.8, contrast="one-sample")
print(f"pingouin: {by_pingouin}; observations for an effect of 6: statsmodels {solved}, pingouin {n:.2f}")
assert by_pingouin > 0.9999 and np.isnan(solved) and 2 < n < 3
PY
