"""The catalogue of measures in Markdown: in full, and as a cheat sheet with what chapter 7 found of each."""

import ast
import re
from pathlib import Path

import nbformat
import pandas as pd

from genlib import ranking
from genlib.book.tables import table
from genlib.measures import CATALOGUE, Measure

__all__ = ["catalogue_table", "cheat_sheet", "words_outside"]

INVARIANCES = {
    "layer scaling": "scale",
    "Dinh per layer": "layers",
    "Dinh per neuron": "units",
    "permutation": "order",
}
NEEDS = {"initial": "start", "first_epoch": "first epoch"}
ROWS = {"exp C": r"e^C", "ln C": r"\ln C"}
RANKED = "07_predicting_generalization"  # the chapter that ranks them


def catalogue_table() -> str:
    """All measures with their formulas, as a table."""
    return table(pd.DataFrame([_measure_row(measure) for measure in CATALOGUE.values()]))


def words_outside(formula: str) -> str:
    """The formula in parts that can wrap: words, but for those of an index, and what a comma and a space end."""
    parts, depth = [""], 0  # formulas and words in turn
    for piece in re.split(r"(\\text\{[^{}]*\}|[{}]|(?<=,)\\ )", formula):
        if piece.startswith(r"\text{") and depth == 0:
            parts += [piece.removeprefix(r"\text{").removesuffix("}").strip(), ""]
        elif piece == "\\ " and depth == 0:
            parts += ["", ""]
        else:
            depth += (piece == "{") - (piece == "}")
            parts[-1] += piece
    parts[::2] = [f"${math.strip()}$" if math.strip() else "" for math in parts[::2]]
    return " ".join(part for part in parts if part)


def _measure_row(measure: Measure) -> dict[str, str]:
    formula = _without_bars(measure.formula)
    needs = [NEEDS.get(need, need) for need in measure.needs if need not in ("data", "labels", "classes")]
    remarks = {
        "costs": f"{measure.passes:g}",
        "needs": ", ".join(needs),
        "blind to": ", ".join(INVARIANCES[kind] for kind in measure.invariances),
        "adjusted": _adjusted(ranking.adjustment(measure.name)),
    }
    said = "; ".join(f"{what} {text}" for what, text in remarks.items() if text)
    return {
        "Measure": f"`{measure.name}`<br>{{cite:t}}`{measure.citation}`",
        "What it is, and what it takes": f"{words_outside(formula)}<br>{said}",
    }


def _adjusted(found: ranking.Adjustment) -> str:
    """The form adjusted for the number of samples, and what sets the row apart from it, or why there is none."""
    if not found.symbol:
        return (
            f"not at all, for it is {found.reason}" if found.reason.startswith("not") else f"not at all: {found.reason}"
        )
    row = f", the row being ${_without_bars(ROWS[found.form])}$" if found.form in ROWS else ""
    return f"${found.symbol}${row}" + (f" ({_without_bars(found.difference)})" if found.difference else "")


def cheat_sheet(chapters: Path) -> str:
    """A line a measure: its symbol, its cost, and how it ranked the dense networks of chapter 7's record."""
    axes, test_samples = _experiment(chapters / f"{RANKED}.ipynb")
    networks = (
        pd.read_parquet(chapters / f"records/{RANKED}.small.parquet")
        .query("grid == 'main' and converged")
        .reset_index(drop=True)
    )
    rest = [axis for axis in axes if axis != "n"]  # which Jiang et al. did not vary
    of_seeds = [  # the dear measures are those of a block's seeds alone
        ranking.granulated_kendall(part, _had_by_all(part), "gap", axes, bootstraps=0).parts["value"].unstack("part")
        for _, part in networks.groupby("seed")
    ]
    psi = pd.concat(of_seeds).groupby(level=0).mean()[rest].mean(axis=1)
    ranked = _had_by_all(networks)
    worst = ranking.sign_errors(networks, ranked, "gap", axes, test_samples=test_samples, bootstraps=0).scores["value"]
    rows = [
        {
            "Measure": f"`{name}`",
            "Symbol": f"${_without_bars(measure.symbol)}$",
            "Passes": f"{measure.passes:g}",
            "Ψ": f"{psi[name]:+.2f}".replace("-", "−") if name in psi else "",
            "Worst error": f"{worst[name]:.2f}" if name in worst else "",
        }
        for name, measure in CATALOGUE.items()
    ]
    return table(pd.DataFrame(rows))


def _had_by_all(networks: pd.DataFrame) -> list[str]:
    return [name for name in CATALOGUE if name in networks and networks[name].notna().all()]


def _experiment(chapter: Path) -> tuple[list[str], int]:
    """The axes of the chapter's grid, and its number of test samples, out of its settings for the scale `small`."""
    cells = nbformat.read(chapter, as_version=4).cells
    (source,) = [cell.source for cell in cells if "scale.settings(" in cell.source]
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    columns = {
        word.arg: word.value for call in calls for word in call.keywords if ast.unparse(call.func) == "scale.settings"
    }
    settings = {word.arg: word.value for word in columns["small"].keywords}
    axes = [word.arg for word in settings["grid"].keywords if len(word.value.elts) > 1]
    return axes, ast.literal_eval(settings["test"])


def _without_bars(formula: str) -> str:
    """A bar would end the table's cell."""
    return formula.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
