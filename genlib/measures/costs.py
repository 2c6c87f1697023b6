"""The bill beforehand: what a table of measures will cost."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from genlib.curvature import exact_trace_passes
from genlib.measures.criteria import gram_passes
from genlib.measures.evaluation import named, require_options
from genlib.measures.measure import Measure
from genlib.measures.memory import memory
from genlib.measures.parts import Passes, Size, parts, unseen
from genlib.measures.samples import Samples, network_and_samples
from genlib.measures.searches import Shared
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision
from genlib.train import Run

__all__ = ["cost"]


@full_precision()
def cost(
    network: nn.Module | Network,
    data: Samples | None = None,
    names: Iterable[str] | None = None,
    *,
    initial: nn.Module | Network | None = None,
    first_epoch: nn.Module | Network | None = None,
    run: Run | None = None,
    input_shape: tuple[int, ...] | None = None,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
    k: int = 10,
    trainable_only: bool = False,
) -> pd.DataFrame:
    """What `evaluate` of the same arguments will cost, one row a measure, in the order of names.

    `passes`, the forward passes over the data that the row adds: what several measures need is counted where it is
    first asked for. They are known but where a search goes on until it has found. For ten eigenvalues, deviations and
    radii, `passes` is what small networks took as a rule, and `at_most` what their limits allow; elsewhere both are
    the same. The whole catalogue took within 20 % of its forecast in 29 of the 30 networks that set the rule, and in 18
    of 18 others. A single row may be far off: a radius takes 1 to 7 ascents of 58 passes where 2.5 or 3 are said, a
    deviation 15 to 41 passes for 23 or 27, eigenvalues 18 to 29 products of 6 passes for 21 or 24. `seconds`, passes
    times the time of a forward pass, taken here; of networks so small that the steps between passes count, up to six
    times as long, and norms of weights are not in it, nor the eigenvalues of a Gram matrix, some seconds. `bytes`, the
    peak of memory beyond the network in float32 and the data, by a bound, in a table of these names.
    Rows that lack labels, a start, an epoch, a run, inputs that can be varied or linear pieces cost nothing. What is
    refused for another reason, as for a negative margin, shows when it is measured. A measure of one's own costs what
    its `passes` say.
    Cost: some looks at 8 samples, three forward passes and one of a chunk. ValueError: a name that isn't in the
    catalogue, data or a network that no measure could take, a stack.
    """
    measures, network = named(names), Network.of(network)
    require_options(data, run=run, input_shape=input_shape, loss=loss, chunk_size=chunk_size, k=k)
    if network.size is not None:
        raise ValueError("network is a stack; give one of its networks, network.each, for the bill of each is its own")
    network, inputs, labels = (network, None, None) if data is None else network_and_samples(network, data)
    start = run.initial if initial is None and run is not None else initial
    others = {
        name: None if one is None else Network.of(one, name)
        for name, one in (("initial", start), ("first_epoch", first_epoch))
    }
    options = {"loss": loss, "chunk_size": chunk_size, "k": k, "trainable_only": trainable_only, **others}
    shared = Shared(network, inputs, labels, run=run, input_shape=input_shape, seed=0, **options)
    size, second = Size(), 0.0
    if "data" not in shared.lacking:
        size, second = replace(_size(shared, loss), k=k), _seconds(shared.unlabelled)

    def runs(measure: Measure) -> bool:
        return not shared.lacking & set(measure.needs) and all(part.passes(size) for part in parts(measure))

    able = [measure for measure in measures if runs(measure)]
    found = []
    for (measure, new), peak in zip(unseen(able), memory(shared, able), strict=True):
        own = 0.0 if isinstance(measure.passes, Passes) else float(measure.passes)
        passes = own + sum(part.passes(size) for part in new)
        most = own + sum((part.at_most or part.passes)(size) for part in new)
        found.append((passes, most, passes * second, round(peak)))
    rows, nothing = iter(found), (0.0, 0.0, 0.0, 0)
    index = pd.Index([measure.name for measure in measures], name="measure")
    of_all = [next(rows) if runs(measure) else nothing for measure in measures]
    return pd.DataFrame(of_all, index, ["passes", "at_most", "seconds", "bytes"])


def _size(shared: Shared, loss: Loss) -> Size:
    objective, network = shared.unlabelled, shared.network
    linear = {layer.kind for layer in network.layers} <= {"linear", "piecewise linear"}
    exact, gram = None, 0.0
    with contextlib.suppress(ValueError):  # of a network without a gradient, which refuses the trace
        exact, gram = exact_trace_passes(objective, loss), gram_passes(objective, loss)
    return Size(
        objective.samples,
        objective.classes,
        shared.parameters,
        chunks=-(-objective.samples // objective.chunk_size),
        varied=network.arguments is None and objective.inputs.is_floating_point(),
        piecewise=network.graph is not None and linear,
        exact_trace=exact,
        numbers=objective.inputs[0].numel(),
        gram=gram,
    )


@torch.no_grad()
def _seconds(objective: Objective) -> float:
    """The time of a forward pass over the data, the middle one of three, after one of a chunk."""
    network, device = objective.network, objective.device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    network.apply(network.params, objective.inputs[: objective.chunk_size])
    times = [now()]
    for _ in range(3):
        for inputs, _ in objective.batches:
            network.apply(network.params, inputs)
        times.append(now())
    return statistics.median(after - before for before, after in itertools.pairwise(times))
