"""The scoreboard of claims: tiles, a figure of all effects, what came out otherwise, a table of all claims."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from genlib.book import plots
from genlib.book.inference import VERDICTS, too_small
from genlib.book.tables import table
from genlib.estimates import interval

__all__ = ["VERDICTS_IN_ORDER", "badges", "draw_effects", "headline", "scoreboard"]

VERDICTS_IN_ORDER = ("reproduced", "partly", *VERDICTS[1:])
BADGES = dict(
    zip(VERDICTS_IN_ORDER, ("success", "warning", "danger", "info", "muted", "primary"), strict=True)
)  # names of colours: those of sphinx-design's badges, and of our tiles
SIGNS = dict(zip(VERDICTS_IN_ORDER, "✓◐✗≈○⊢", strict=True))
COLOURS = dict(
    zip(
        ("reproduced", "contradicted", "no effect of interest", "open"),
        (plots.PALETTE[2], plots.PALETTE[1], plots.PALETTE[0], plots.GREY),
        strict=True,
    )
)
SHOWN = 30  # half-widths of an interval: what lies beyond is drawn there
CLAIM = ["scale", "id"]


def scoreboard(titles: Mapping[str, str], parts: pd.DataFrame) -> dict[str, str]:
    """The generated parts of the page: tiles with what they count, claims that came out otherwise, all of them.

    `parts` as `genlib.book.ledger.ledger` makes them, `titles` of the chapters by name.
    """
    counts = "\n\n".join(_counted(scale, at_scale) for scale, at_scale in parts.groupby("scale", sort=False))
    sections = [
        f"### {titles[chapter]}, at the scale `{scale}`\n\nDecided in [](<{chapter}.ipynb>).\n\n"
        + "\n\n".join(_claim(claim) for _, claim in group.groupby("id", sort=False))
        for (chapter, scale), group in parts.groupby(["chapter", "scale"], sort=False)
    ]
    return {
        "the overview": f"{counts}\n\n{_tiles(parts)}",
        "the list of exceptions": _exceptions(parts),
        "the table of all claims": "\n\n".join(sections),
    }


def headline(parts: pd.DataFrame) -> str:
    """The counts at the scale `small` in one sentence, for the landing page."""
    parts = parts[parts["scale"] == "small"]
    claims = _claims(parts[parts["tested"]])
    tally = ", ".join(
        f"{count} {verdict.replace(', ', ' and ')}" for verdict, count in _tally(claims["of_claim"]).items()
    )
    return (
        f"At the scale `small` it has put {_number(len(claims), 'claim')} of the papers to a test: {tally}. Beside "
        f"them stand {_number(len(_questions(parts)), 'question')} of its own, and "
        f"{_number(int(parts['shown'].sum()), 'fact')} that hold by a theorem or by construction."
    )


def draw_effects(parts: pd.DataFrame, path: Path) -> None:
    """Every tested effect over half the width of its interval, a row a claim; those of our own questions hollow."""
    plots.style()
    parts = parts[~parts["shown"]]
    claims = _claims(parts)
    rows = {key: row for row, key in enumerate(zip(claims["scale"], claims["id"], strict=True))}
    figure, ax = plt.subplots(figsize=(plots.WIDTH, 1.6 + 0.19 * len(claims)))
    for part in parts.itertuples():
        low, high = interval(part.values)
        clear = part.mean / max((high - low) / 2, 1e-9)
        marker, colour = ("D" if abs(clear) >= SHOWN else "o"), COLOURS[part.verdict]
        look = {"color": colour, "markerfacecolor": colour if part.whose == "paper" else "none", "alpha": 0.85}
        ax.plot(max(-SHOWN, min(SHOWN, clear)), rows[part.scale, part.id], marker, markersize=6, **look)
    ax.axvspan(-1, 1, color=plots.GREY, alpha=0.15, linewidth=0)
    ax.axvline(0, color=plots.GREY, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=2, linscale=0.8)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    ax.set_xticks(ticks, [f"≤ −{SHOWN}", *(f"{tick}".replace("-", "−") for tick in ticks[1:-1]), f"≥ {SHOWN}"])
    ax.set_xlabel("effect / half the width of its 95 % interval")
    ax.set_yticks(range(len(claims)), claims["id"] + (" " + claims["scale"] if claims["scale"].nunique() > 1 else ""))
    ax.tick_params(axis="y", labelsize=7.5, length=0)
    ax.set_ylim(len(claims) - 0.3, -0.7)
    for first in claims.drop_duplicates("paper").index[1:]:
        ax.axhline(first - 0.5, color=plots.GREY, linewidth=0.8, alpha=0.6)
    marks = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS.values()]
    hollow = plt.Line2D([], [], marker="o", linestyle="", color=plots.GREY, markerfacecolor="none")
    figure.legend([*marks, hollow], [*COLOURS, "our question"], loc="outside upper center", ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def badges(verdict: str, *, ours: bool = False) -> str:
    """A badge for each word of a verdict, only outlined for a question of ours."""
    return " ".join(f"{{bdg-{BADGES[word]}{'-line' * ours}}}`{word}`" for word in verdict.split(", "))


def _counted(scale: str, parts: pd.DataFrame) -> str:
    """How many claims, questions of ours and shown facts there are at one scale, in words; then what corrections do."""
    tested, questions, facts = parts[parts["tested"]], _questions(parts), parts[parts["shown"]]
    claims = _claims(tested)
    own = int((facts["whose"] == "ours").sum())
    lines = [
        f"At the scale `{scale}`, **{_number(len(claims), 'claim')} of the papers**: {_badged(claims['of_claim'])}. "
        f"They have {_number(len(tested), 'part')} with a criterion each: {_badged(tested['verdict'])}.",
        f"**{_number(len(questions), 'question')} of ours**" + _answers(questions) + ".",
        f"**{_number(len(facts), 'shown fact')}**, which hold by a theorem or by construction"
        + (f", {own} of them by one of this book" if own else "")
        + ".",
        _corrected(tested),
        _seconded(tested),
    ]
    return "\n\n".join(line for line in lines if line)


def _answers(questions: pd.DataFrame) -> str:
    return f", answered with the same words: {_badged(questions['verdict'], ours=True)}" if len(questions) else ""


def _corrected(tested: pd.DataFrame) -> str:
    decided = tested[tested["verdict"] != "open"]
    lost = {column: decided[decided[column] == "open"] for column in ("holm", "fdr")}
    return (
        f"Corrected for so many tests at once, {len(lost['holm'])} of the {_number(len(decided), 'decided part')} "
        f"become open by Holm's rule, and {len(lost['fdr'])} by that of Benjamini and Hochberg."
    )


def _seconded(tested: pd.DataFrame) -> str:
    there = tested[tested["again"].notna()]
    if there.empty:
        return ""
    other = there[there["again"] != there["verdict"]]
    lines = [f"{_link(part)}: {part.verdict}, there {part.again}" for part in other.itertuples()]
    return (
        f"On generated data {_number(len(there), 'part')} of the papers were decided a second time, and "
        f"{_number(len(other), 'verdict')} came out otherwise" + (f": {'; '.join(lines)}" if lines else "") + "."
    )


def _tiles(parts: pd.DataFrame) -> str:
    """A table with a row a paper and scale: a coloured tile a claim, an outlined one a question, one a shown fact."""
    rows = []
    for (paper, scale), group in parts.groupby(["paper", "scale"], sort=False):
        claims = _claims(group[group["tested"]])
        where = ", ".join(f"[{int(chapter[:2])}](<{chapter}.ipynb>)" for chapter in group["chapter"].unique())
        questions, facts = _questions(group), group[group["shown"]]
        rows.append(
            {
                "Paper": f"{{cite:t}}`{paper}`",
                "Chapter": where,
                "Scale": f"`{scale}`",
                "Claims of the paper": "".join(_tile(claim, claim.of_claim) for claim in claims.itertuples()),
                "Our questions": "".join(_tile(part, part.verdict, ours=True) for part in questions.itertuples()),
                "Shown": "".join(_tile(part, "shown", ours=part.whose == "ours") for part in facts.itertuples()),
            }
        )
    frame = pd.DataFrame(rows)
    return table(frame if parts["scale"].nunique() > 1 else frame.drop(columns="Scale"))


def _tile(part, verdict: str, *, ours: bool = False) -> str:
    """A tile for a row of the ledger, of the whole claim or of one of its parts."""
    alone = ours or verdict == "shown"
    said = f"{part.id}{f' ({part.name})' if alone and part.name else ''}, {verdict}: "
    said = html.escape(said + (part.criterion if alone else part.statement), quote=True)
    first, *_ = words = verdict.split(", ")
    return (
        f'<a class="tile tile-{BADGES[first]}{" tile-ours" * ours}" href="#{_anchor(part)}" title="{said}" '
        f'aria-label="{said}">{part.number}<span aria-hidden="true">{"".join(SIGNS[word] for word in words)}</span></a>'
    )


def _exceptions(parts: pd.DataFrame) -> str:
    """A list of the claims with tested parts that were not reproduced: these parts, and where to look."""
    differs = parts["again"].notna() & (parts["again"] != parts["verdict"])
    otherwise = parts[parts["tested"] & ((parts["verdict"] != "reproduced") | differs)]
    lines = []
    for _, group in otherwise.groupby(CLAIM, sort=False):
        claim = next(group.itertuples())
        said = "; ".join(_exception(part) for part in group.itertuples())
        lines.append(f"- {_link(claim, whole=True)}{_figure(claim)}: {claim.statement} {said}.")
    return "\n".join(lines) or "None: every tested part of every claim was reproduced."


def _exception(part) -> str:
    second = f", on generated data {part.again}" if _other(part, part.again) not in ("–", "same") else ""
    name = f"*{part.name}*, " if part.name else ""
    return f"{badges(part.verdict)} {name}{_measured(part)}{too_small(part.verdict, part.power)}{second}"


def _claim(parts: pd.DataFrame) -> str:
    """A claim with its criteria and the table of its parts."""
    claim = next(parts.itertuples())
    source = f"{claim.source}, recalled" if claim.recalled else claim.source
    verdict = f" {badges(claim.of_claim)}" if _rated(claim) else ""
    said = f"{claim.statement} ({source}; {_number(claim.seeds, 'seed')}){_figure(claim)}"
    rows = pd.DataFrame([_row(part) for part in parts.itertuples()])
    if parts["again"].isna().all():
        rows = rows.drop(columns="Generated data")
    if (parts["name"] == "").all():
        rows = rows.drop(columns="Part")
    criteria = "\n".join(_criterion(part) for part in parts.itertuples())
    return f'<span id="{_anchor(claim)}"></span>**`{claim.id}`**{verdict} {said}\n\n{criteria}\n\n{table(rows)}'


def _rated(claim) -> bool:
    return claim.of_claim in VERDICTS_IN_ORDER or ", " in claim.of_claim


def _criterion(part) -> str:
    kind = ("our own" if part.shown else "our question") if part.whose == "ours" else ""
    head = " ".join([f"*{part.name}*"] * bool(part.name) + [f"({kind})"] * bool(kind))
    return f"- {head}: {part.criterion}" if head else f"- {part.criterion}"


def _row(part) -> dict[str, str]:
    return {
        "Part": f"*{part.name}*",
        "Effect, 95 % interval": _measured(part),
        "δ": "–" if part.shown else f"{part.smallest:.2g}",
        "Power": "–" if part.shown else f"{100 * part.power:.0f}\u00a0%",
        "Verdict": badges(part.verdict, ours=part.whose == "ours") + too_small(part.verdict, part.power),
        "Holm": _other(part, part.holm),
        "B.–H.": _other(part, part.fdr),
        "Generated data": _other(part, part.again),
    }


def _other(part, verdict: object) -> str:
    """Another verdict on a part, which may be missing, beside the one that it has."""
    return "–" if not isinstance(verdict, str) else "same" if verdict == part.verdict else verdict


def _measured(part) -> str:
    return f"{part.mean:.3g} ({part.low:.3g} … {part.high:.3g})"


def _figure(part) -> str:
    return f" {{numref}}`{part.figure}`" if isinstance(part.figure, str) else ""


def _badged(verdicts: pd.Series, *, ours: bool = False) -> str:
    return ", ".join(f"{count} {badges(verdict, ours=ours)}" for verdict, count in _tally(verdicts).items())


def _tally(verdicts: Iterable[str]) -> dict[str, int]:
    """How often each verdict was given, in their order."""
    counts = pd.Series(verdicts).value_counts().to_dict()
    return {verdict: counts[verdict] for verdict in sorted(counts, key=_place)}


def _place(verdict: str) -> list[int]:
    return [VERDICTS_IN_ORDER.index(word) for word in verdict.split(", ")]


def _claims(parts: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: that of the first of these parts."""
    return parts.drop_duplicates(CLAIM).reset_index(drop=True)


def _questions(parts: pd.DataFrame) -> pd.DataFrame:
    return parts[(parts["whose"] == "ours") & ~parts["shown"]]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _link(part, *, whole: bool = False) -> str:
    name = f" *{part.name}*" if part.name and not whole else ""
    return f'<a href="#{_anchor(part)}"><code>{part.id}</code></a>{name}'


def _anchor(part) -> str:
    return f"{part.scale}-{part.id.replace('.', '-')}"
