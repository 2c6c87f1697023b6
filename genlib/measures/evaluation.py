"""The table: measures of one network by name, or of each of a stack."""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NoReturn

import pandas as pd
import torch
from torch import nn

from genlib import scale
from genlib.estimates import Estimate
from genlib.measures.catalogue import ROWS
from genlib.measures.measure import CATALOGUE, Measure, register_measure
from genlib.measures.memory import warn_of_memory
from genlib.measures.samples import Samples, network_and_samples
from genlib.measures.searches import Shared
from genlib.network import Network
from genlib.network.errors import first_line, out_of_memory
from genlib.network.losses import Loss
from genlib.network.precision import full_precision
from genlib.progress import progress
from genlib.train import Run

__all__ = ["evaluate", "named", "require_options"]

INFINITE = {
    -math.inf: "the value is ln 0: a norm, a distance or a loss that the measure takes the logarithm of is zero here",
    math.inf: "the value is infinite: what the measure divides by is zero here, or it leaves the range of numbers",
}
NO_SPREAD = "the standard error is unknown: it comes of the spread of several samples, and there is one"

for _row in ROWS:
    register_measure(Measure(*_row))


@full_precision()
def evaluate(
    network: nn.Module | Network,
    data: Samples | None = None,
    *,
    initial: nn.Module | Network | None = None,
    first_epoch: nn.Module | Network | None = None,
    run: Run | Sequence[Run] | None = None,
    names: Iterable[str] | None = None,
    input_shape: tuple[int, ...] | None = None,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
    k: int = 10,
    trainable_only: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures of one network by name: one row each, in their order.

    Unless `names` are given, all that apply but those of a spectrum and the learning coefficient, each of which may
    take as long as the rest together: they only say so, and `names=measures.CATALOGUE` has these too.

    `value`, larger where it predicts a larger gap; `standard_error`, 0 where the value is exact; `passes`, the forward
    passes over the data that the row added, for what several measures need is computed once; `reason`, why there is no
    value, or no standard error, or over which part of the network a value is: norms of layers leave out what they don't
    know, as LayerNorm (`norms.unknown_parts`), and a product of the others is no bound. `data`: the training samples of
    a Dataset, a pair of inputs and labels, tensors or arrays, several inputs as ((first, second), labels) or by name in
    a dict with labels, or a loader, list or dataset of such batches or samples. It is read, written down, beyond 64 MB
    into a file that is mapped, and read again to see that it gives the same; all is brought to where the network is,
    chunk by chunk what would fill half of a GPU. Of inputs alone, rows that need labels say that they are missing;
    without data there are those of the weights, some of which need the `input_shape` of a sample.
    `loss`, as `Objective.of` takes it, is that of curvature, gradients and sharpness. Where labels are other than
    classes, as targets of regression, rows of classes, margins and the error say so; `cross_entropy` stays what it is.
    `chunk_size`: samples that pass at a time; `k`: eigenvalues of `log_volume`. `trainable_only`: what moves, and is
    w, are the parameters that require a gradient; norms of layers remain those of all layers.
    `initial`, `first_epoch`: the network before training (with a `run`, its start), and after an epoch. A stack, whose
    networks may have data of their own ([models, samples, …]) and a run each: an index level `network` in front. Small
    dense networks search together, so `passes` is then that of the longest search.
    `cost` tells beforehand what a table costs. A RuntimeWarning says it where a row may take more memory than there is.
    A measure that fails says so in its `reason`, too, and the others go on. An interrupt, or memory that is not to be
    had, ends the table: the rows that are done stay, the others say why; within a sweep it raises.
    ValueError: a name that isn't in the catalogue, data or a network that no measure could take.
    """
    measures = named(names)
    require_options(data, run=run, input_shape=input_shape, loss=loss, chunk_size=chunk_size, k=k, seed=seed)
    network, inputs, labels = (Network.of(network), None, None) if data is None else network_and_samples(network, data)
    if run is not None and isinstance(run, Run) != (network.size is None):
        raise ValueError(
            "run is a single one for one network, and a list of one for each network of a stack; give that"
        )
    if initial is None and run is not None:
        initial = run.initial if network.size is None else Network.stack([one.initial for one in run])
    others = {
        name: None if other is None else Network.of(other, name).taking(network.arguments)
        for name, other in (("initial", initial), ("first_epoch", first_epoch))
    }
    options = {"loss": loss, "chunk_size": chunk_size, "k": k, "trainable_only": trainable_only}
    shared = {"run": run, "input_shape": input_shape, "seed": seed, **options, **others}
    if network.size is None:
        one = Shared(network, inputs, labels, **shared)
        warn_of_memory(one, measures)
        return _rows(one, measures, [])
    for name, other in others.items():
        if other is not None and other.size != network.size:
            raise ValueError(f"{name} holds {other.size} networks, network {network.size}; give each network its own")
    if run is not None and len(run) != network.size:
        raise ValueError(f"run holds {len(run)} runs, network {network.size} networks; give each network its own")
    each = Shared.of_each(network, inputs, labels, **shared)
    warn_of_memory(each[0], measures)
    ended: list[str] = []
    return pd.concat({i: _rows(shared, measures, ended) for i, shared in enumerate(each)}, names=["network"])


def require_options(
    data: Samples | None,
    *,
    run: object,
    input_shape: tuple[int, ...] | None,
    loss: Loss,
    chunk_size: int | None,
    k: int,
    seed: int = 0,
) -> None:
    """Refuse what no table could take, before anything is measured."""
    for argument, given, least in (("seed", seed, -math.inf), ("chunk_size", chunk_size or 1, 1), ("k", k, 1)):
        if not isinstance(given, int) or given < least:
            raise ValueError(f"{argument} is {given!r}; give a whole number{'' if given is seed else ' of at least 1'}")
    if loss == "error":
        raise ValueError(
            "loss is 'error', which has no gradient; name another, for rows of the error are that in any case"
        )
    several = isinstance(run, Iterable) and not isinstance(run, Run)
    for one in [] if run is None else run if several else [run]:
        if not isinstance(one, Run):
            raise ValueError(
                f"run is or holds a {type(one).__name__}; give what fit returned, of a stack a list of these"
            )
    if data is not None and input_shape is not None:
        raise ValueError("input_shape is given beside data, whose samples have their own; give one of them")


def _rows(shared: Shared, measures: list[Measure], ended: list[str]) -> pd.DataFrame:
    """The rows of one network. What ends the table is written into `ended`, and no measure is computed after it."""
    rows, numbers = [], []
    for measure in (line := progress(measures, what="measures")):
        line.set_postfix_str(measure.name)
        before = shared.passes
        found, reason, part = _measured(measure, shared, ended)
        rows.append((measure.name, shared.passes - before, reason, part))
        numbers.append(torch.stack([found.value.double(), found.standard_error.double()]))
    values = torch.stack(numbers).tolist() if numbers else []  # the one read of all values
    found = [_row(*number, *row) for number, row in zip(values, rows, strict=True)]
    names = pd.Index([measure.name for measure in measures], name="measure")
    return pd.DataFrame(found, names, ["value", "standard_error", "passes", "reason"])


def _row(value: float, error: float, name: str, passes: float, reason: str, part: str) -> tuple:
    """The row of a value that is one, or of why there is none."""
    if reason or math.isfinite(value):
        return value, error, passes, NO_SPREAD if math.isinf(error) else reason or part
    silent = FloatingPointError(f"{name} is not a number")
    return math.nan, math.nan, passes, unexpected(silent) if math.isnan(value) else INFINITE[value]


def _measured(measure: Measure, shared: Shared, ended: list[str]) -> tuple[Estimate, str, str]:
    """The value, or why there is none, and over which part of the network it is."""
    nothing = Estimate(shared.number(math.nan), shared.number(math.nan), 0.0)
    if ended:
        return nothing, ended[0], ""
    try:
        found = measure.compute(shared)
        part = shared.part if "layers" in measure.needs else ""
    except ValueError as refusal:
        return nothing, str(refusal), ""
    except (Exception, KeyboardInterrupt) as error:
        reason = _ends(error)
        if reason is None:
            return nothing, unexpected(error), ""
        if scale.in_sweep():
            raise
        ended.append(reason)
        return nothing, reason, ""
    return (found if isinstance(found, Estimate) else Estimate(found, torch.zeros_like(found), 0.0)), "", part


def _ends(error: BaseException) -> str | None:
    """Why a table ends with this error, if it does."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before this row was measured; call evaluate again with the names that are missing"
    if out_of_memory(error):
        return "out of memory at this row or one before it; measure fewer samples, or this row by a kernel's chunk_size"
    return None


def unexpected(error: Exception) -> str:
    """The reason of a row whose measure fails as no refusal does; the tests of this project let it raise."""
    return f"unexpected {type(error).__name__}: {first_line(error)}; please report it"


def named(names: Iterable[str] | None) -> list[Measure]:
    """The measures of these names, all that there are unless names are given; those on request then only say so."""
    if names is None:
        return [_waiting(m) if m.on_request else m for m in CATALOGUE.values()]
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Iterable):
        raise ValueError(f"names is of {type(names).__name__}; give names of the catalogue, or none for all")
    return [_named(name) for name in names]


def _waiting(measure: Measure) -> Measure:
    """A row that costs nothing, and says how to have its value."""

    passes = f"some {measure.passes:.0f} forward passes"
    takes = passes if measure.passes > 100 else "a matrix of the products of up to 3,000 gradients"

    def compute(shared: Shared) -> NoReturn:
        raise ValueError(
            f"takes {takes}, so only on request: names=[{measure.name!r}], or names=measures.CATALOGUE for all rows"
        )

    return replace(measure, passes=0, compute=compute)


def _named(name: str) -> Measure:
    if not isinstance(name, str) or name not in CATALOGUE:
        near = difflib.get_close_matches(str(name), CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see measures.CATALOGUE"
        raise ValueError(f"names holds {name!r}, which is not in the catalogue; {hint}")
    return CATALOGUE[name]
