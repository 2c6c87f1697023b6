"""The page of criteria without an effect: how often each says `reproduced` of nothing, and how much it can find."""

import pandas as pd

from genlib.book.criteria import Criterion
from genlib.book.inference import SMALLEST_POWER, rates
from genlib.book.tables import table

__all__ = ["DRAWS", "KINDS", "simulated", "simulations"]

DRAWS = 2000
FALSE = 0.05  # the most that the rule allows
KINDS = {
    "value": "one number",
    "difference": "difference of two",
    "smallest": "smallest of several",
    "tau": "Kendall's τ",
    "slope": "slope",
    "rank correlation": "rank correlation",
}


def simulated(parts: pd.DataFrame) -> pd.DataFrame:
    """Of each tested part of a ledger, the shares of simulated runs that say `reproduced` and `contradicted` without
    an effect, and the power that its record holds, the share of `reproduced` with the smallest effect of interest.
    """
    rows = []
    for part in parts[~parts["shown"]].to_dict("records"):
        of, smallest = Criterion.of_record(part["of"]), part["smallest"]
        reproduced, contradicted = rates(of.simulated(0.0, draws=DRAWS), smallest)
        row = {key: part[key] for key in ("id", "name", "whose", "seeds", "scale", "smallest", "power")}
        rows.append(row | {"kind": of.name, "reproduced": reproduced, "contradicted": contradicted})
    return pd.DataFrame(rows)


def simulations(parts: pd.DataFrame) -> dict[str, str]:
    """The generated parts of the page, for the claims at the scale `small`."""
    found = simulated(parts[parts["scale"] == "small"])
    rows = pd.DataFrame(
        {
            "Claim": part.id + f" *{part.name}*" * bool(part.name) + " (ours)" * (part.whose == "ours"),
            "Effect of a seed": KINDS[part.kind],
            "Seeds": str(part.seeds),
            "No effect: reproduced": _percent(part.reproduced),
            "No effect: contradicted": _percent(part.contradicted),
            "δ": f"{part.smallest:.2g}",
            "Power": _percent(part.power),
        }
        for part in found.itertuples()
    )
    plain, able = (found["kind"] == "value").sum(), (found["power"] >= SMALLEST_POWER).sum()
    return {
        "the summary of simulations": (
            f"All {len(found)} tested parts, {DRAWS:,} simulated runs each. Without an effect a part says *reproduced* "
            f"in {_percent(found['reproduced'].mean())} of the runs on average and in "
            f"{_percent(found['reproduced'].max())} at most; the rule allows {_percent(FALSE)}, and the shares below "
            f"err by about half a point. {able} of the {len(found)} parts find their smallest effect of interest in at "
            f"least {_percent(SMALLEST_POWER)} of the runs. Of {plain} parts the effect of a seed is one number "
            "already; for these the simulation tries nothing but Student's interval on normal numbers."
        ),
        "the table of simulations": table(rows),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2g}\u00a0%" if share < 0.995 else "100\u00a0%"
