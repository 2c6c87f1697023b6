"""The norms of each layer, their distances from the start, and norms for layers that one brings."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, Params
from genlib.network.parts import Parts, Patterns
from genlib.network.precision import full_precision
from genlib.network.shapes import layer_input_shapes
from genlib.network.weights import (
    CONVOLUTIONS,
    REGISTERED,
    TRANSPOSED,
    FoldedWeight,
    checked_shape,
    folded_weights,
    traced_layers,
    unknown_modules,
    weight_differences,
)
from genlib.norms.operators import (
    OperatorNorm,
    conv_operator_norm,
    group_norm,
    kernel_frobenius_norm,
    operator_frobenius_norm,
    require_fit,
    spectral_norm,
)

__all__ = [
    "LayerShape",
    "conv_norm",
    "distances",
    "frobenius_norms",
    "group_norms",
    "layer_names",
    "layer_shapes",
    "operator_frobenius_norms",
    "register_norm",
    "require_nonzero",
    "spectral_norms",
    "stable_ranks",
    "unknown_parts",
]


def register_norm(kind: type[nn.Module], matrix: Callable[[nn.Module, Params], Tensor]) -> None:
    """Let the norms of this module measure layers of a type that they don't know, by way of their matrix.

    `matrix(layer, tensors)` returns the layer's linear map as a dense matrix [outputs, inputs], from the layer's own
    parameters and buffers by name: `register_norm(MyDiagonal, lambda layer, t: torch.diag(t["weight"]))`.
    A layer that runs on inputs of that many numbers and does something else to them is refused by every norm: no
    matrix is that of LayerNorm or of an activation.
    """
    REGISTERED[kind] = matrix


def layer_names(network: nn.Module | Network, *, include: Patterns = None, exclude: Patterns = None) -> list[str]:
    """The names of the layers that every norm here lists, in the order in which they run.

    Dense layers, convolutions, registered types, and any BatchNorm that doesn't directly follow one of the first two:
    torch's own; modules that keep statistics and act as a BatchNorm, with their activation or without; and modules
    whose forward is one F.linear or convolution of its input, with a weight of their own parameters and buffers.
    Of torch's recurrent layers and cells each gate's matrices, `rnn.weight_ih_l0.i` and so on (i, f, g, o of an LSTM,
    r, z, n of a GRU), however many steps they run; of nn.MultiheadAttention `attention.in_proj_weight.q`, `….k`,
    `….v` and `attention.out_proj`; of embeddings the linear map from one-hot rows, [features, vocabulary]. Those of
    one module come in the order of its parameters. A product of norms bounds no recurrent layer and no attention.

    `include`: of this list only what matches a name or pattern, as `"features.*"`, or lies in a module that does.
    `exclude`: the list as if what matches were not in the network. Both are one pattern or several, as of file names,
    and every norm of layers takes them. ValueError, which names the part: weights of any other kind (LayerNorm, PReLU,
    layers with a forward of their own), unless excluded: `unknown_parts` names them, and a product without them is no
    bound; forward hooks; a weight that is tied, runs twice or is used outside its layer; BatchNorm in training mode; a
    pattern that nothing matches.
    """
    return [layer.name for layer in traced_layers(Network.of(network), Parts(include, exclude))[0]]


def unknown_parts(network: nn.Module | Network) -> dict[str, str]:
    """The parts with weights that no norm of layers knows, by name with their type: give them as `exclude`.

    A module, or the bare parameter of one that holds modules besides (`Parameter`), as a class token.
    """
    network = Network.of(network)
    whole = dict(network.module.named_modules())
    found = unknown_modules(network).items()
    return {name: type(module).__name__ if name in whole else "Parameter" for name, module in found}


def frobenius_norms(
    network: nn.Module | Network, *, include: Patterns = None, exclude: Patterns = None
) -> Float[Tensor, "*models layers"]:
    """‖W‖_F of each layer, BatchNorm folded, biases left out; of a convolution that of its kernel.

    Cost: one pass over the weights. Layers and errors as `layer_names`; a network without any: ValueError.
    """
    network, weights, _ = folded(network, include, exclude)
    return each(network, [kernel_frobenius_norm(weight) for weight in weights])


def group_norms(
    network: nn.Module | Network,
    p: float | int,
    q: float | int,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models layers"]:
    """‖W‖_{p,q} = ‖(‖w_i‖_p)_i‖_q of each layer, w_i the incoming weights of output unit or channel i.

    (2, 1) is the norm of Bartlett et al. (2017), Σ_i ‖w_i‖₂; (1, inf) the largest ℓ1 norm of a unit.
    Cost and errors as `frobenius_norms`; p or q below 1: ValueError.
    """
    network, weights, _ = folded(network, include, exclude)
    return each(network, [group_norm(weight, p, q) for weight in weights])


@full_precision()
def spectral_norms(
    network: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models layers"]:
    """The operator norm ‖W‖₂ of each layer, BatchNorm folded; of a convolution that of the map on its whole image.

    `input_shape` is of one sample, without the batch axis; a pass of one of zeros finds where each convolution works.
    Dense layers by their smaller Gram matrix; convolutions as `conv_norm`, to the relative error `rtol`. (The kernel
    reshaped to a matrix, as other code has it, can be a third too small: Sedghi, Gupta & Long 2019.)
    Cost: a forward pass of one sample; for a convolution without circular padding some 100 passes of it on one image.
    Errors as `frobenius_norms`; an input_shape that doesn't fit, an rtol that isn't reached, a convolution that runs
    twice or on what isn't a batch of images: ValueError.
    """
    network, weights, shapes = folded(network, include, exclude, input_shape)
    return each(network, [spectral_norm(weight, shapes, rtol) for weight in weights])


@full_precision()
def stable_ranks(
    network: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models layers"]:
    """‖A‖_F² / ‖A‖₂² of each layer's linear map A, at least 1; of a convolution that of the map on its whole image.

    ‖A‖_F counts a tap of the kernel once for each place where it meets a pixel, so it isn't `frobenius_norms`.
    Shapes, cost and errors as `spectral_norms`; a layer of zeros has no stable rank: ValueError.
    """
    network, weights, shapes = folded(network, include, exclude, input_shape)
    spectral = require_nonzero(each(network, [spectral_norm(weight, shapes, rtol) for weight in weights]))
    return (each(network, [operator_frobenius_norm(weight, shapes) for weight in weights]) / spectral) ** 2


@full_precision()
def operator_frobenius_norms(
    network: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models layers"]:
    """‖A‖_F of each layer's linear map A, of a convolution that of the map on its whole image.

    Cost: a forward pass of one sample and one pass over the weights. Errors as `spectral_norms`.
    """
    network, weights, shapes = folded(network, include, exclude, input_shape)
    return each(network, [operator_frobenius_norm(weight, shapes) for weight in weights])


class LayerShape(NamedTuple):
    """How many outputs, inputs and taps a layer has: of a convolution its channels and the places of its kernel."""

    outputs: int
    inputs: int
    taps: int


def layer_shapes(
    network: nn.Module | Network, *, include: Patterns = None, exclude: Patterns = None
) -> list[LayerShape]:
    """Outputs, inputs and taps of each layer; a dense layer has one tap. Errors as `frobenius_norms`."""
    return [LayerShape(*weight.sizes) for weight in folded(network, include, exclude)[1]]


@full_precision()
def distances(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    *,
    norm: str | tuple[float | int, float | int] = "frobenius",
    input_shape: tuple[int, ...] | None = None,
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models layers"]:
    """‖W - W⁰‖ of each layer; W⁰ are the weights of `initial`, with its own BatchNorm statistics folded.

    `norm`: `frobenius`, `spectral` (which needs `input_shape`, as `spectral_norms`) or a pair (p, q) for ‖·‖_{p,q}.
    Cost and errors as the norm asked for; networks of different layers: ValueError.
    """
    if norm == "spectral" and input_shape is None:
        raise ValueError("input_shape is missing; the spectral norm needs the shape of one sample")
    shape = input_shape if norm == "spectral" else None
    network, weights, shapes = folded(network, include, exclude, shape)
    differences = weight_differences(weights, folded(initial, include, exclude)[1])
    if norm == "frobenius":
        return each(network, [kernel_frobenius_norm(weight) for weight in differences])
    if norm == "spectral":
        return each(network, [spectral_norm(weight, shapes, rtol) for weight in differences])
    if isinstance(norm, str):
        raise ValueError(f"norm {norm!r} is unknown; it must be 'frobenius', 'spectral' or a pair (p, q)")
    return each(network, [group_norm(weight, *norm) for weight in differences])


@full_precision()
def conv_norm(
    convolution: nn.Module, input_shape: tuple[int, ...], *, rtol: float = 1e-4, max_passes: int = 4000
) -> OperatorNorm:
    """The operator norm of one convolution, 1-d to 3-d, transposed or not, on images [channels, …] of `input_shape`.

    Circular padding with stride 1: the largest ‖K̂(f)‖₂ over half of the frequencies, each by its smaller Gram matrix
    (Sedghi, Gupta & Long 2019). Any other padding, stride, dilation and groups: Golub-Kahan Lanczos on the convolution
    and its transpose until the residual is below rtol · σ or `max_passes` are spent; see the `residual`. The start is
    always the same random image. 60 passes give about 1e-3 for 64 random channels, the hard case.
    Cost: `passes` of the convolution on one image. A layer of another type, an image that doesn't fit: ValueError.
    """
    weights = folded_weights(Network.of(convolution))
    operation, weight = weights[0].operation, weights[0].value
    if weights[0].name or not isinstance(operation, CONVOLUTIONS + TRANSPOSED):
        raise ValueError(f"convolution is a {type(convolution).__name__}; it must be a convolution of torch.nn")
    require_fit(operation, weight, checked_shape(input_shape))
    norm = conv_operator_norm(operation, weight, checked_shape(input_shape), rtol, max_passes)
    return replace(norm, value=norm.value[0], residual=norm.residual[0])


def folded(
    network: nn.Module | Network, include: Patterns, exclude: Patterns, input_shape: tuple[int, ...] | None = None
) -> tuple[Network, list[FoldedWeight], dict[str, tuple[int, ...]]]:
    """The network, the weights of its layers, and where a shape is given those of the convolutions' inputs."""
    network = Network.of(network)
    found = traced_layers(network, Parts(include, exclude))
    shapes = {} if input_shape is None else layer_input_shapes(network, input_shape, found)
    return network, folded_weights(network, found[0]), shapes


def each(network: Network, norms: list[Tensor]) -> Tensor:
    norms = torch.stack(norms, -1)
    return norms[0] if network.size is None else norms


def require_nonzero(norms: Tensor) -> Tensor:
    """The norms as they are. One of them zero: ValueError, since what divides by it has no value."""
    if not norms.all():
        raise ValueError("network: a layer has no weight other than zero, and this divides by its norm; leave it out")
    return norms
