"""The page of networks that people have, from the record that `genlib.book.networks` writes."""

import re
from textwrap import shorten

import pandas as pd

from genlib.book.tables import table
from genlib.measures import CATALOGUE

__all__ = ["GROUPS", "ROWS", "in_words", "outcomes", "pages"]

ROWS = [name for name, row in CATALOGUE.items() if row.passes < 1000]  # the others take minutes a network

GROUPS = {  # by the row with which each begins, in the order of the catalogue
    "parameters": "Size",
    "inverse_margin": "Size over margin",
    "cross_entropy": "Outputs",
    "jacobian_norm": "Inputs",
    "hessian_trace": "Curvature",
    "keskar_sharpness": "Sharpness and PAC-Bayes",
    "soft_rank": "Curvature since 2020",
    "steps": "Training",
}
# By what a reason holds: in plain words, and what to do about it.
REASONS = {
    "^over part of the network": (
        "Parts have weights that no norm of layers knows",
        "Compare networks that leave out the same. A part that is one linear map of its input can be told to "
        "the norms by `norms.register_norm`.",
    ),
    "would leave out its|has no known paths": (
        "Sums over paths stop at a part or an operation whose paths are not known",
        "Take products of layers' norms, which go over the rest; there is no sum over paths through attention, "
        "normalization over features or a gate.",
    ),
    "is not piecewise linear|this measure needs to know": (
        "There are no linear pieces to count, or an operation that may have none",
        "Take `jacobian_norm` or `input_gradient`, which say how the output hangs on the input.",
    ),
    "is used outside its layer|one tied weight|runs more than once": (
        "A weight is used outside its layer, or twice",
        "Leave it out: `norms.frobenius_norms(network, exclude=…)`. The rows that need no layers are there.",
    ),
    "margins are next to zero": (
        "The smallest box or noise that is tried changes too many predictions already",
        "Take the rows in which all weights move alike, as `sharpness_flatness`: those in proportion move each weight "
        "by 0.001 at least, and many weights together far. Or train further, for larger margins.",
    ),
    "indices of an embedding|inputs are several tensors|this moves them": (
        "The inputs are tokens, or several tensors: they have no norm, and can't be moved a little",
        "Measure from the embedded tokens on, or take a row that needs no inputs' norm.",
    ),
    "no Sequential of dense layers|between its layers": (
        "The network is no chain of dense layers whose units can be rescaled, or whose slopes are known",
        "Take `pac_bayes_origin` or `product_spectral_margin`, which take others.",
    ),
    "singular values of a layer are": (
        "No layer has the fifty singular values that the tail of a spectrum needs",
        "Measure a wider network.",
    ),
    "too large for its whole spectrum": (
        "The map of a convolution is too large for all of its singular values",
        "Leave it out: `norms.tail_exponents(network, input_shape=…, exclude=…)`.",
    ),
    "labels are all the same": ("All samples are of one class", "Measure samples of two classes at least."),
    "outputs aren't those of a dense or": (
        "The outputs are not those of a dense or convolution layer",
        "Give what enters your last layer to `features.effective_rank` and `features.class_separation`.",
    ),
    "top_eigenvalues gives those of the Hessian": (
        "The gradients of each sample are not known layer by layer, so there is no Gram matrix of them",
        "Take `hessian_trace`, `top_eigenvalue` or `batch_sharpness`, which need products with the Hessian alone.",
    ),
    "its outputs aren't those of a dense layer": (
        "The outputs are not those of a dense layer, so there is no last layer to look at",
        "Take `hessian_trace`, or `measures.layers` for that of each layer.",
    ),
}
MARKS = {"applies": "●", "part": "◐", "refused": "○"}
SAID = {"applies": "whole network", "part": "part of it", "refused": "refused"}


def outcomes(entry: dict) -> dict[str, str]:
    """`applies`, `part` or `refused` of each row of the catalogue, in its order; ValueError: another set of rows."""
    found = dict.fromkeys(entry["applies"], "applies")
    for what in ("part", "refused"):
        found |= {row: what for rows in entry[what].values() for row in rows}
    if odd := set(found) ^ set(ROWS):
        raise ValueError(f"the record of networks lacks or adds {sorted(odd)}; write it anew with `make record`")
    return {row: found[row] for row in ROWS}


def in_words(reason: str) -> tuple[str, str]:
    """A reason in plain words, and what to do about it."""
    for pattern, words in REASONS.items():
        if re.search(pattern, reason):
            return words
    raise ValueError(f"no plain words for the reason {reason!r}; add them to REASONS")


def pages(record: dict[str, dict]) -> dict[str, str]:
    """The generated parts of the page."""
    found = pd.DataFrame({name: outcomes(entry) for name, entry in record.items()})
    group = pd.Series({row: GROUPS.get(row) for row in found.index}).ffill()
    rows = [
        {"Network": name} | {of: _marked(found.loc[group == of, name]) for of in GROUPS.values()} for name in record
    ]
    return {
        "the summary of networks": _summary(record, found),
        "the table of networks": table(pd.DataFrame(rows)),
        "the commonest refusals": _commonest(record),
        "the networks one by one": "\n\n".join(_section(name, entry) for name, entry in record.items()),
    }


def _marked(rows: pd.Series) -> str:
    counts = rows.value_counts()
    return "<br>".join(
        f'<span role="img" aria-label="{SAID[what]}">{mark}</span>&nbsp;{counts[what]}'
        for what, mark in MARKS.items()
        if what in counts
    )


def _summary(record: dict[str, dict], found: pd.DataFrame) -> str:
    valued = (found != "refused").sum()
    kinds = valued.groupby({name: entry["kind"] for name, entry in record.items()}, sort=False).min()
    least = "\n".join(f"- {kind}: at least {count}" for kind, count in kinds.items())
    versions = ", ".join(sorted({entry["package"] for entry in record.values()}))
    return (
        f"Of {len(found)} rows, {len(record)} networks have from {valued.min()} ({valued.idxmin()}) to {valued.max()}, "
        f"over the whole network or a part:\n\n{least}\n\nMeasured with {versions}."
    )


def _commonest(record: dict[str, dict]) -> str:
    met = [
        (in_words(reason), name)
        for name, entry in record.items()
        for what in ("part", "refused")
        for reason in entry[what]
    ]
    counts = pd.Series([words for words, _ in dict.fromkeys(met)]).value_counts()
    return table(
        pd.DataFrame(
            [
                {"What is in the way": why, "Networks": str(count), "What to do": mend}
                for (why, mend), count in counts.items()
            ]
        )
    )


def _section(name: str, entry: dict) -> str:
    valued = sum(what != "refused" for what in outcomes(entry).values())
    lines = [
        f":::{{dropdown}} {name}: {valued} rows",
        f"```python\nnetwork = {entry['code']}\n```\n",
        f"{entry['package']}, {entry['parameters']:,} parameters\n",
    ]
    for what in ("part", "refused"):
        for reason, rows in entry[what].items():
            named = ", ".join(f"`{row}`" for row in rows)
            lines.append(f"- {MARKS[what]} {in_words(reason)[0]} ({len(rows)}): {named}.\\")
            lines.append(f"  *In full:* `{shorten(reason, 300, placeholder=' …')}`")
    return "\n".join([*lines, ":::"])
