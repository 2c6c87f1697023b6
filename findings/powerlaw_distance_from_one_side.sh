#!/usr/bin/env bash
# powerlaw 2.0.0: the Kolmogorov-Smirnov distance of a tail is not the one of scipy, and picks another tail.
#
# Expected: the distance D of a fit, "the Kolmogorov-Smirnov distance between the data and the fit", is the largest
#   |F_n(x) - F(x)|, which scipy.stats.kstest computes; and x_min, chosen where D is least, is where the law lies nearest
#   to the data.
# Seen: D compares the law with F_n just below each value alone, never at the value, where F_n has jumped by 1/k: it
#   misses half of the candidates. For 200 exponential numbers, with the range of alpha opened, it reports D = 0.105 for
#   a tail of 8 values and alpha = 8.56; kstest of the same values and law says 0.173. By kstest the best tail is another
#   one, of 21 values, alpha = 5.19 and D = 0.121. Of five other seeds one has another D, and none another tail.
# Why it matters: exponents of the spectra of a network's layers come from tails of some dozens of values or fewer, in
#   which a jump of 1/k is as large as the distances that are compared, and short tails are preferred.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check powerlaw==2.0.0 scipy==1.17.1 numpy==2.4.6

"$folder/env/bin/python" -W ignore - <<'PY'
import numpy as np
import powerlaw
from scipy import stats

x = np.sort(np.random.default_rng(0).exponential(size=200))


def law(start):
    tail = x[start:]
    return 1 + len(tail) / np.log(tail / tail[0]).sum(), tail


def distance(start):
    alpha, tail = law(start)
    return stats.kstest(tail, lambda v: 1 - (v / tail[0]) ** (1 - alpha)).statistic


fit = powerlaw.Fit(x, parameter_ranges={"alpha": [1.0, 100.0]}, verbose=0)
start = int(np.flatnonzero(np.isclose(x, fit.xmin))[0])
alpha, tail = law(start)
below = np.arange(len(tail)) / len(tail)
one_sided = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - below).max()
print(f"powerlaw: {len(tail)} values, alpha {fit.power_law.alpha:.4f}, D {fit.power_law.D:.4f}")
print(f"kstest of the same tail: {distance(start):.4f}; below each value alone: {one_sided:.4f}")
best = min(range(len(x) - 1), key=distance)
print(f"by kstest the best tail: {len(x) - best} values, alpha {law(best)[0]:.4f}, D {distance(best):.4f}")
assert abs(fit.power_law.alpha - alpha) < 1e-3
assert abs(fit.power_law.D - one_sided) < 1e-6 < distance(start) - fit.power_law.D
assert len(x) - best > 2 * len(tail) and alpha - law(best)[0] > 1
PY
