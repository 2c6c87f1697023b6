"""All norms of every layer from one look at the network."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.parts import Parts, Patterns
from genlib.network.precision import full_precision
from genlib.network.shapes import layer_input_shapes
from genlib.network.weights import (
    BATCH_NORM,
    CONVOLUTIONS,
    TRANSPOSED,
    FoldedWeight,
    folded_weights,
    traced_layers,
    weight_differences,
)
from genlib.norms.layers import LayerShape, each, folded
from genlib.norms.operators import group_norm, kernel_frobenius_norm, operator_frobenius_norm, spectral_norm

__all__ = ["LayerNorms", "layer_norms"]


@dataclass(frozen=True)
class LayerNorms:
    """Every layer's name, the type of its module, the BatchNorm folded into it or "", its shape, and its norms.

    `frobenius`, `spectral`, `operator_frobenius` and `distances` are what the functions of these names give, `group` is
    the (2, 1) norm. `singular_values`: the largest, of a convolution None.
    """

    names: list[str]
    types: list[str]
    batch_norms: list[str]
    shapes: list[LayerShape]
    frobenius: Float[Tensor, "*models layers"]
    operator_frobenius: Float[Tensor, "*models layers"]
    spectral: Float[Tensor, "*models layers"]
    group: Float[Tensor, "*models layers"]
    distances: Float[Tensor, "*models layers"] | None
    singular_values: list[Float[Tensor, "*models _"] | None]


@full_precision()
def layer_norms(
    network: nn.Module | Network,
    *,
    initial: nn.Module | Network | None = None,
    input_shape: tuple[int, ...] | None = None,
    singular_values: int = 0,
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> LayerNorms:
    """All norms of each layer at once, for the price of the spectral ones: layers are found and folded once.

    `initial` gives distances, `singular_values` how many of the largest of each layer's matrix, of a BatchNorm its
    scales; those of a convolution on its whole image aren't its kernel's, and are left out. `input_shape`, of one
    sample, is needed where there are convolutions. Cost: as `spectral_norms`, and a decomposition of each matrix where
    singular values are asked for. Errors as `spectral_norms` and `distances`; singular_values below 0: ValueError.
    """
    if singular_values < 0:
        raise ValueError(f"singular_values is {singular_values}; give how many of the largest, 0 for none")
    network = Network.of(network)
    layers, graph = traced_layers(network, Parts(include, exclude))
    weights = folded_weights(network, layers)
    convolutions = [weight.name for weight in weights if isinstance(weight.operation, CONVOLUTIONS + TRANSPOSED)]
    if input_shape is None and convolutions:
        raise ValueError(f"input_shape is missing; {convolutions[0]} is a convolution, give the shape of one sample")
    shapes = {} if input_shape is None else layer_input_shapes(network, input_shape, (layers, graph))
    moved = None if initial is None else weight_differences(weights, folded(initial, include, exclude)[1])
    frobenius, whole, spectral, tops = [], [], [], []
    for weight in weights:
        top = _singular_values(weight) if singular_values and weight.name not in convolutions else None
        frobenius.append(kernel_frobenius_norm(weight))
        whole.append(operator_frobenius_norm(weight, shapes) if weight.name in shapes else frobenius[-1])
        spectral.append(spectral_norm(weight, shapes, rtol) if top is None else top[..., 0])
        tops.append(None if top is None else each(network, [*top[..., :singular_values].unbind(-1)]))
    return LayerNorms(
        [layer.name for layer in layers],
        [type(network.module.get_submodule(layer.module)).__name__ for layer in layers],
        [layer.folded or "" for layer in layers],
        [LayerShape(*weight.sizes) for weight in weights],
        each(network, frobenius),
        each(network, whole),
        each(network, spectral),
        each(network, [group_norm(weight, 2, 1) for weight in weights]),
        None if moved is None else each(network, [kernel_frobenius_norm(weight) for weight in moved]),
        tops,
    )


def _singular_values(weight: FoldedWeight) -> Float[Tensor, "models k"]:
    """In falling order."""
    if isinstance(weight.operation, BATCH_NORM):
        return weight.value.abs().sort(-1, descending=True).values
    return torch.linalg.svdvals(weight.value)
