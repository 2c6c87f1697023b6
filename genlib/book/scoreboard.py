"""The scoreboard of claims: tiles, a figure of all effects, what came out otherwise, a table of all claims."""

import html
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from genlib.book import plots
from genlib.book.claims import VERDICTS
from genlib.book.tables import table

__all__ = ["draw_effects", "scoreboard"]

SCALES = ("small", "gpu", "paper")
BADGES = dict(zip(VERDICTS, ("success", "warning", "muted", "danger"), strict=True))
SIGNS = dict(zip(VERDICTS, "✓◐○✗", strict=True))
COLOURS = dict(zip(VERDICTS, (plots.PALETTE[2], plots.PALETTE[5], plots.GREY, plots.PALETTE[1]), strict=True))
SHOWN = 30  # half-widths of an interval: what lies beyond is drawn there


def scoreboard(titles: Mapping[str, str], claims: pd.DataFrame) -> dict[str, str]:
    """The generated parts of the page: tiles with what they count, claims that came out otherwise, all of them.

    `claims` as `genlib.book.claims.records` reads them, `titles` of the chapters by name.
    """
    claims = _in_order(claims)
    sections = [
        f"### {titles[chapter]}, at the scale `{scale}`\n\nDecided in [](<{chapter}.ipynb>).\n\n"
        + table(pd.DataFrame([_row(claim) for claim in group.itertuples()]))
        for (chapter, scale), group in claims.groupby(["chapter", "scale"], sort=False)
    ]
    return {
        "the overview": f"{_counted(claims)}\n\n{_tiles(claims)}",
        "the list of exceptions": _exceptions(claims),
        "the table of all claims": "\n\n".join(sections),
    }


def draw_effects(claims: pd.DataFrame, path: Path) -> None:
    """Every effect over half the width of its interval, a row a claim."""
    plots.style()
    claims = _in_order(claims)
    scales = claims["scale"].nunique()
    figure, ax = plt.subplots(figsize=(plots.WIDTH, 1.4 + 0.19 * len(claims)))
    for row, claim in claims.iterrows():
        for name, effect in claim["measured"].items():
            low, high = claim["interval"][name]
            clear = effect / max((high - low) / 2, 1e-9)
            marker = "D" if abs(clear) >= SHOWN else "o"
            at = max(-SHOWN, min(SHOWN, clear))
            ax.plot(at, row, marker, color=COLOURS[claim["verdicts"][name]], markersize=6, alpha=0.85)
    ax.axvspan(-1, 1, color=plots.GREY, alpha=0.15, linewidth=0)
    ax.axvline(0, color=plots.GREY, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=2, linscale=0.8)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    ax.set_xticks(ticks, [f"≤ −{SHOWN}", *(f"{tick}".replace("-", "−") for tick in ticks[1:-1]), f"≥ {SHOWN}"])
    ax.set_xlabel("effect / half the width of its 95 % interval")
    ax.set_yticks(range(len(claims)), claims["id"] + (" " + claims["scale"] if scales > 1 else ""))
    ax.tick_params(axis="y", labelsize=7.5, length=0)
    ax.set_ylim(len(claims) - 0.3, -0.7)
    for first in claims.drop_duplicates("paper").index[1:]:
        ax.axhline(first - 0.5, color=plots.GREY, linewidth=0.8, alpha=0.6)
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=COLOURS[v]) for v in VERDICTS if v != "partly"]
    figure.legend(marks, [v for v in VERDICTS if v != "partly"], loc="outside upper center", ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _in_order(claims: pd.DataFrame) -> pd.DataFrame:
    """With the paper of each claim and its number; papers in the order of the chapters, scales from small to large."""
    papers, numbers = zip(*claims["id"].str.split("."), strict=True)
    claims = claims.assign(paper=papers, number=numbers)
    order = {paper: place for place, paper in enumerate(claims["paper"].unique())}
    keys = [claims["paper"].map(order), claims["scale"].map(SCALES.index), claims["number"].astype(int)]
    return claims.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)


def _counted(claims: pd.DataFrame) -> str:
    """How many claims, and how many of their parts, got each verdict, in words."""
    sentences = []
    for scale, at_scale in claims.groupby("scale", sort=False):
        of_parts = pd.Series([verdict for verdicts in at_scale["verdicts"] for verdict in verdicts.values()])
        sentences.append(
            f"At the scale `{scale}` {len(at_scale)} claims were decided: {_tally(at_scale['verdict'])}. They have "
            f"{len(of_parts)} parts, each with a criterion of its own: {_tally(of_parts)}."
        )
    return "\n\n".join(sentences)


def _tally(verdicts: pd.Series) -> str:
    counts = verdicts.value_counts().reindex(VERDICTS, fill_value=0)
    return ", ".join(f"{count} {_badge(verdict)}" for verdict, count in counts.items() if count)


def _tiles(claims: pd.DataFrame) -> str:
    """A table with a row a paper and scale, and in it a coloured tile a claim."""
    rows = []
    for (paper, scale), group in claims.groupby(["paper", "scale"], sort=False):
        where = ", ".join(f"[{int(chapter[:2])}](<{chapter}.ipynb>)" for chapter in group["chapter"].unique())
        tiles = "".join(_tile(claim) for claim in group.itertuples())
        rows.append({"Paper": f"{{cite:t}}`{paper}`", "Chapter": where, "Scale": f"`{scale}`", "Claims": tiles})
    frame = pd.DataFrame(rows)
    return table(frame if claims["scale"].nunique() > 1 else frame.drop(columns="Scale"))


def _tile(claim) -> str:
    said = html.escape(f"{claim.id}, {claim.verdict}: {claim.statement}", quote=True)
    return (
        f'<a class="tile tile-{BADGES[claim.verdict]}" href="#{_anchor(claim.id, claim.scale)}" title="{said}" '
        f'aria-label="{said}">{claim.number}<span aria-hidden="true">{SIGNS[claim.verdict]}</span></a>'
    )


def _exceptions(claims: pd.DataFrame) -> str:
    """A list of the claims with parts that were not reproduced: these parts, and where to look."""
    lines = [
        f'- <a href="#{_anchor(claim.id, claim.scale)}"><code>{claim.id}</code></a>{_figure(claim)}: {claim.statement} '
        + "; ".join(_part(claim, name, verdict) for name, verdict in claim.verdicts.items() if verdict != "reproduced")
        + "."
        for claim in claims.itertuples()
        if set(claim.verdicts.values()) != {"reproduced"}
    ]
    return "\n".join(lines) or "None: every part of every claim was reproduced."


def _part(claim, name: str, verdict: str) -> str:
    return f"{_badge(verdict)} {'' if name == claim.id else f'*{name}*, '}{_measured(claim, name)}"


def _figure(claim) -> str:
    return f" {{numref}}`{claim.figure}`" if isinstance(claim.figure, str) else ""


def _row(claim) -> dict[str, str]:
    criteria = {claim.id: claim.criterion} if isinstance(claim.criterion, str) else claim.criterion
    measured = {
        name: _measured(claim, name) + (f", {claim.verdicts[name]}" if len(criteria) > 1 else "") for name in criteria
    }
    said = f"`{claim.id}`: {claim.statement} ({claim.source}){_figure(claim)}"
    return {
        "Claim": f'<span id="{_anchor(claim.id, claim.scale)}"></span>{_badge(claim.verdict)}<br>{said}',
        "Criterion": _lines(criteria, claim.id),
        "Measured, with 95 % interval": f"{_lines(measured, claim.id)}<br>{len(claim.seeds)} seeds",
    }


def _measured(claim, name: str) -> str:
    low, high = claim.interval[name]
    return f"{claim.measured[name]:.3g} ({low:.3g} … {high:.3g})"


def _lines(parts: dict[str, str], id: str) -> str:
    """The parts of a claim one under the other; a claim that has only itself for a part needs no name for it."""
    return "<br>".join(text if name == id else f"*{name}*: {text}" for name, text in parts.items())


def _badge(verdict: str) -> str:
    return f"{{bdg-{BADGES[verdict]}}}`{verdict}`"


def _anchor(id: str, scale: str) -> str:
    return f"{scale}-{id.replace('.', '-')}"
