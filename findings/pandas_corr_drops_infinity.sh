#!/usr/bin/env bash
# pandas 3.1.1 (with scipy 1.17.1): DataFrame.corr leaves out infinite values, Series.corr keeps them.
#
# Expected: frame.corr(method="kendall") and frame.a.corr(frame.b, method="kendall") are the same number, and that of
#   scipy.stats.kendalltau. "NA/null values" are left out, says the documentation; infinity is neither for pandas,
#   isna() denies it, and a rank correlation is well defined with it: it is the largest value.
# Seen: the frame leaves out each row with an infinity, for Kendall, Spearman and Pearson alike, and says nothing. Of
#   ten networks, four of them with an infinite measure, it gives a Kendall's tau of +1.00, where Series.corr,
#   DataFrame.corrwith and scipy give -0.21. With min_periods=10 it gives NaN, though none of the ten values is NaN.
# Why it matters: a norm, a sharpness or a ratio that overflows is infinite just for the networks at the end of the
#   range, and here these are the ones that the measure is wrong about. The table of all measures against the gap, which
#   one makes with frame.corr, then shows a perfect measure; the correlation of the two columns shows a useless one.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check pandas==3.1.1 numpy==2.4.6 scipy==1.17.1

"$folder/env/bin/python" -W ignore - <<'PY'
import numpy as np
import pandas as pd
from scipy import stats

frame = pd.DataFrame(
    {
        "measure": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, *[np.inf] * 4],
        "gap": [0.05, 0.06, 0.07, 0.08, 0.09, 0.10, 0.01, 0.02, 0.03, 0.04],
    }
)
assert not frame.isna().any(axis=None)
finite = frame.replace(np.inf, 1e300)  # of the same ranks
for method, of_scipy in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr)):
    by_frame = frame.corr(method=method).loc["measure", "gap"]
    others = {
        "Series.corr": frame.measure.corr(frame.gap, method=method),
        "corrwith": frame[["measure"]].corrwith(frame.gap, method=method).iloc[0],
        "scipy": of_scipy(frame.measure, frame.gap).statistic,
        "frame.corr with 1e300 for infinity": finite.corr(method=method).loc["measure", "gap"],
    }
    print(f"{method}: frame.corr {by_frame:+.4f};", ", ".join(f"{name} {value:+.4f}" for name, value in others.items()))
    assert np.isclose(by_frame, 1.0)
    assert np.allclose(list(others.values()), others["scipy"]) and others["scipy"] < -0.1

pearson = frame.corr().loc["measure", "gap"], frame.measure.corr(frame.gap)
print(f"pearson: frame.corr {pearson[0]:+.4f}, Series.corr {pearson[1]}")
assert np.isclose(pearson[0], 1.0) and np.isnan(pearson[1])
rows = frame.corr(method=lambda a, b: len(a)).loc["measure", "gap"], frame.measure.corr(frame.gap, lambda a, b: len(a))
print(f"rows that a method of one's own gets: {rows[0]:g} from frame.corr, {rows[1]} from Series.corr")
assert rows == (6, 10)
enough = frame.corr(method="kendall", min_periods=10).loc["measure", "gap"]
print(f"frame.corr with min_periods=10, of ten rows: {enough}")
assert np.isnan(enough)
PY
