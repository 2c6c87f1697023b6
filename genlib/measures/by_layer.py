"""The table of layers: the norms of each, and its share of the gradient and of the Hessian's trace."""

import math
from collections.abc import Mapping
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from genlib import curvature, norms
from genlib.measures.samples import Samples, network_and_samples
from genlib.network import Network
from genlib.network.blocks import by_layer
from genlib.network.derivatives import require_derivatives
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.parts import Patterns, above, one_by_one
from genlib.network.precision import full_precision
from genlib.network.targets import sample_axes

__all__ = ["layers"]

_Share = TypeVar("_Share", int, Tensor)
_SHAPE = ["outputs", "inputs", "taps"]


@full_precision()
def layers(
    network: nn.Module | Network,
    data: Samples | None = None,
    *,
    initial: nn.Module | Network | None = None,
    input_shape: tuple[int, ...] | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    singular_values: int = 0,
    loss: Loss = "cross_entropy",
) -> pd.DataFrame:
    """One row a layer, in the order in which they run, by the names of `norms.layer_names`.

    `type`, that of its module; `outputs`, `inputs`, `taps`; `batch_norm`, the one that is folded into it, or "";
    `parameters`, its biases and that BatchNorm's counted; `frobenius_norm` ‖W‖_F, of a convolution that of its kernel;
    `spectral_norm` ‖A‖₂ and `stable_rank` ‖A‖_F²/‖A‖₂², A its linear map; `group_norm` ‖W‖_{2,1}. With `initial`, the
    network before training, `distance` ‖W − W⁰‖_F; with `singular_values` a list of so many of the largest.
    With `data`, as for `evaluate`: `gradient_norm` of the mean loss in the layer's parameters, `hessian_trace` over
    these, and its `standard_error`: 0 where `curvature.trace` is exact, with a folded BatchNorm an upper bound of it.
    `reason` says why a number of the row is missing.

    Parts that no norm knows are left out; `attrs["left_out"]` says which and why. `include` and `exclude` choose
    further, as for `norms.layer_names`. `input_shape`, of one sample, is needed for convolutions without data. A stack:
    an index level `network` in front. Cost: as `norms.layer_norms`; with data `attrs["passes"]` forward passes, 3 and
    those of `curvature.trace`. ValueError: as `norms.layer_norms`; with data as `Objective.of`, and the loss `error`.
    """
    network = Network.of(network)
    if network.size is not None:
        options = {"input_shape": input_shape, "include": include, "exclude": exclude}
        return _of_each(network, data, initial, {**options, "singular_values": singular_values, "loss": loss})
    objective = None
    if data is not None:
        network, inputs, labels = network_and_samples(network, data)
        objective = _objective(network, inputs, labels, loss)
        network, input_shape = objective.network, input_shape or tuple(objective.inputs.shape[1:])
    unknown = norms.unknown_parts(network)
    found = norms.layer_norms(
        network,
        initial=initial,
        input_shape=input_shape,
        singular_values=singular_values,
        include=include,
        exclude=[*one_by_one("exclude", exclude), *unknown],
    )
    table = pd.DataFrame(found.shapes, pd.Index(found.names, name="layer"), _SHAPE)
    table.insert(0, "type", found.types)
    sizes = {name: sum(one.numel() for one in own) for name, own in by_layer(network.module, network.params).items()}
    table["batch_norm"], table["parameters"] = found.batch_norms, [sum(own) for own in _own(found, sizes)]
    columns = {
        "frobenius_norm": found.frobenius,
        "spectral_norm": found.spectral,
        "stable_rank": (found.operator_frobenius / found.spectral).square(),
        "group_norm": found.group,
    }
    columns |= {} if found.distances is None else {"distance": found.distances}
    refusal = ""
    if objective is not None:
        more, refusal, table.attrs["passes"] = _of_data(objective, labels, loss, found)
        columns |= more
    table[list(columns)] = torch.stack([column.double() for column in columns.values()], 1).tolist()
    missing = {"stable_rank": "all weights are zero", "hessian_trace": refusal}
    if singular_values:
        tops = [math.nan if top is None else top.tolist() for top in found.singular_values]
        table["singular_values"] = pd.Series(tops, table.index, dtype=object)
        missing["singular_values"] = "those of a convolution on its whole image are not computed"
    reasons = [
        table[name].isna().map({True: f"{name}: {why}; ", False: ""}) for name, why in missing.items() if name in table
    ]
    table["reason"] = sum(reasons, start=pd.Series("", table.index)).str.removesuffix("; ")
    table.attrs["left_out"] = {name: f"{kind}, which no norm of layers knows" for name, kind in unknown.items()}
    return table


def _of_each(network: Network, data: object, initial: nn.Module | Network | None, options: dict) -> pd.DataFrame:
    starts = [None] * network.size if initial is None else Network.of(initial, "initial").each
    if len(starts) != network.size:
        raise ValueError(f"initial holds {len(starts)} networks, network {network.size}; give each network its own")
    _, inputs, labels = (None, None, None) if data is None else network_and_samples(network, data)
    of_each = data is not None and sample_axes(inputs, labels, network.size) == 2
    tables = {}
    for i, (one, start) in enumerate(zip(network.each, starts, strict=True)):
        own = (inputs[i], labels[i]) if of_each else data
        tables[i] = layers(one, own, initial=start, **options)
    return pd.concat(tables, names=["network"])


def _objective(network: Network, inputs: Tensor, labels: Tensor | None, loss: Loss) -> Objective:
    if labels is None:
        raise ValueError("data has no labels; give inputs and labels, or input_shape alone for the norms")
    if loss == "error":
        raise ValueError("loss is 'error', which has no gradient; choose cross_entropy or mse")
    objective = Objective.of(network, inputs, labels, loss)
    require_derivatives(objective, twice=False)
    return objective


def _of_data(
    objective: Objective, labels: Tensor, loss: Loss, found: norms.LayerNorms
) -> tuple[dict[str, Tensor], str, float]:
    """The columns of the loss, why there is no trace if there is none, and the forward passes."""
    value, gradient = objective.gradient(objective.network.params)
    objective.finite(value)
    zero = value.new_zeros(())
    parts = by_layer(objective.network.module, gradient).items()
    squares = {name: sum(one.double().square().sum() for one in own) for name, own in parts}
    columns = {"gradient_norm": torch.stack([sum(own, zero).sqrt() for own in _own(found, squares)])}
    try:
        trace = curvature.trace(objective.network, objective.inputs, labels, loss=loss)
    except ValueError as refusal:
        nothing = torch.full_like(found.spectral, math.nan)
        return columns | {"hessian_trace": nothing, "standard_error": nothing}, str(refusal), 3.0
    for name, shares in (("hessian_trace", trace.by_layer), ("standard_error", trace.errors_by_layer)):
        columns[name] = torch.stack([sum(own, zero) for own in _own(found, shares)])
    return columns, "", 3.0 + trace.passes


def _own(found: norms.LayerNorms, shares: Mapping[str, _Share]) -> list[list[_Share]]:
    """Each layer's shares: its own, those of what lies in it, and those of the BatchNorm that is folded into it."""
    pairs = zip(found.names, found.batch_norms, strict=True)
    return [
        [part for name, part in shares.items() if {layer, norm or layer} & {*above(name), name}]
        for layer, norm in pairs
    ]
