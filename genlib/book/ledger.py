"""The ledger: every part of every claim as one table, with what corrections for many tests and a second record say."""

import numpy as np
import pandas as pd
from scipy import stats

from genlib.book import inference

__all__ = ["SCALES", "ledger"]

SCALES = ("small", "gpu", "paper")
LEVEL = 0.05


def ledger(claims: pd.DataFrame, again: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a part, in the order of the papers and their claims, scales from small to large.

    `claims` as `genlib.book.claims.records` reads them; `again` a second record, of a run on other data. Columns beside
    those of the records: `of_claim` the verdict on the claim, `name` of the part (empty where it is the only one),
    `tested` whether it is a tested part of the paper. For these `holm` and `fdr` are the verdicts that remain when all
    tests at one scale are corrected together, those of parts without a spread between seeds as they are, and `again`
    that of the second record, None where it has none. A claim is at best `partly` reproduced where the second record
    differs in one of them.
    """
    second = _verdicts(again)
    rows = [
        _row(claim, name, part, second.get((claim["chapter"], claim["scale"], claim["id"], name)))
        for claim in claims.to_dict("records")
        for name, part in claim["parts"].items()
    ]
    parts = pd.DataFrame(rows)
    for column, adjust in {"holm": inference.holm, "fdr": stats.false_discovery_control}.items():
        parts[column] = None
        parts.loc[parts["tested"], column] = parts["verdict"]
        for _, group in parts[parts["tested"] & parts["p"].notna()].groupby("scale"):
            kept = adjust(group["p"].astype(float).tolist()) <= LEVEL
            parts.loc[group.index, column] = np.where(kept, group["verdict"], "open")
    differs = parts["tested"] & parts["again"].notna() & (parts["again"] != parts["verdict"])
    doubted = differs.groupby([parts["scale"], parts["id"]]).transform("any")
    parts.loc[doubted & (parts["of_claim"] == "reproduced"), "of_claim"] = "partly"
    return _in_order(parts)


def _row(claim: dict, name: str, part: dict, again: str | None) -> dict:
    of_claim = ("chapter", "scale", "genlib", "id", "statement", "source", "recalled", "figure")
    row = {key: claim[key] for key in of_claim} | {"of_claim": claim["verdict"], "seeds": len(claim["seeds"])}
    row |= {key: value for key, value in part.items() if key != "interval"}
    row |= dict(zip(("low", "high"), part["interval"], strict=True))
    tested = part["whose"] == "paper" and not part["shown"]
    return row | {"name": "" if name == claim["id"] else name, "tested": tested, "again": again}


def _verdicts(claims: pd.DataFrame | None) -> dict[tuple[str, str, str, str], str]:
    rows = [] if claims is None else claims.to_dict("records")
    return {
        (claim["chapter"], claim["scale"], claim["id"], name): part["verdict"]
        for claim in rows
        for name, part in claim["parts"].items()
    }


def _in_order(parts: pd.DataFrame) -> pd.DataFrame:
    """With the paper of each claim and its number; papers in the order of the chapters, scales from small to large."""
    papers, numbers = zip(*parts["id"].str.split("."), strict=True)
    parts = parts.assign(paper=papers, number=numbers)
    order = {paper: place for place, paper in enumerate(parts["paper"].unique())}
    keys = [parts["paper"].map(order), parts["scale"].map(SCALES.index), parts["number"].astype(int)]
    return parts.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)
