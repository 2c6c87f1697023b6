"""Norms of layers and their products, exact operator norms of convolutions, path norms, distances from the start."""

import copy
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, fx, nn
from torch.func import vmap

from genlib.network import Network, Params

__all__ = [
    "OperatorNorm",
    "conv_norm",
    "distances",
    "frobenius_norms",
    "group_norms",
    "layer_names",
    "log_frobenius_complexity",
    "log_path_norm",
    "log_product",
    "log_spectral_complexity",
    "path_norm",
    "register_norm",
    "spectral_complexity",
    "spectral_norms",
    "stable_ranks",
]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, *_CONV, *_TRANSPOSED)
_NORM = nn.modules.batchnorm._BatchNorm
_REGISTERED: dict[type[nn.Module], Callable[[nn.Module, Params], Tensor]] = {}

_GRAM_LIMIT = 1024  # above it Lanczos reads a matrix faster than its Gram matrix is diagonalized
_SPECTRUM_CHUNK = 2**23  # complex numbers held at a time: 64 MiB
_MAX_PASSES = 4000
_CHECK_EVERY = 8  # Lanczos steps from one host read to the next


@dataclass(frozen=True)
class OperatorNorm:
    """An operator norm, the residual ‖Aᵀu - σv‖ of its singular pair, and the convolutions it cost, transposed or not.

    Some singular value lies within `residual` of `value`, which is never above the norm but for rounding. Both are 0
    where Fourier or a dense matrix gave the norm at once.
    """

    value: Float[Tensor, "*models"]
    residual: Float[Tensor, "*models"]
    passes: int


def register_norm(kind: type[nn.Module], matrix: Callable[[nn.Module, Params], Tensor]) -> None:
    """Let the norms of this module measure layers of a type that they don't know, by way of their matrix.

    `matrix(layer, tensors)` returns the layer's linear map as a dense matrix [outputs, inputs], from the layer's own
    parameters and buffers by name: `register_norm(MyDiagonal, lambda layer, t: torch.diag(t["weight"]))`.
    """
    _REGISTERED[kind] = matrix


def layer_names(network: nn.Module | Network) -> list[str]:
    """The names of the layers that every norm here lists, in the order in which they run.

    Dense layers, convolutions, registered types, and any BatchNorm that doesn't directly follow one of the first two.
    """
    return [layer.name for layer in _layers(Network.of(network))]


def frobenius_norms(network: nn.Module | Network) -> Float[Tensor, "*models layers"]:
    """‖W‖_F of each layer, BatchNorm folded, biases left out; of a convolution that of its kernel.

    Cost: one pass over the weights. An unknown layer type, a tied weight or BatchNorm in training mode: ValueError.
    """
    network = Network.of(network)
    return _each(network, [_frobenius(weight) for weight in _weights(network)])


def group_norms(network: nn.Module | Network, p: float | int, q: float | int) -> Float[Tensor, "*models layers"]:
    """‖W‖_{p,q} = ‖(‖w_i‖_p)_i‖_q of each layer, w_i the incoming weights of output unit or channel i.

    (2, 1) is the norm of Bartlett et al. (2017), Σ_i ‖w_i‖₂; (1, inf) the largest ℓ1 norm of a unit.
    Cost and errors as `frobenius_norms`; p or q below 1: ValueError.
    """
    network = Network.of(network)
    return _each(network, [_group(weight, p, q) for weight in _weights(network)])


def spectral_norms(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], rtol: float = 1e-4
) -> Float[Tensor, "*models layers"]:
    """The operator norm ‖W‖₂ of each layer, BatchNorm folded; of a convolution that of the map on its whole image.

    `input_shape` is of one sample, without the batch axis; one dry pass finds the shape at which each layer works.
    Dense layers by their smaller Gram matrix; convolutions as `conv_norm`, to the relative error `rtol`. (The kernel
    reshaped to a matrix, as other code has it, can be a third too small: Sedghi, Gupta & Long 2019.)
    Cost: a dry pass; for each convolution without circular padding some 100 passes of it on one image.
    Errors as `frobenius_norms`; an input_shape that doesn't fit, an rtol that isn't reached: ValueError.
    """
    network = Network.of(network)
    shapes = _shapes(network, input_shape)
    return _each(network, [_spectral(weight, shapes, rtol) for weight in _weights(network)])


def stable_ranks(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], rtol: float = 1e-4
) -> Float[Tensor, "*models layers"]:
    """‖A‖_F² / ‖A‖₂² of each layer's linear map A, at least 1; of a convolution that of the map on its whole image.

    ‖A‖_F counts a tap of the kernel once for each place where it meets a pixel, so it isn't `frobenius_norms`.
    Shapes, cost and errors as `spectral_norms`; a layer of zeros has no stable rank: ValueError.
    """
    network = Network.of(network)
    shapes, weights = _shapes(network, input_shape), _weights(network)
    spectral = _divisors(_each(network, [_spectral(weight, shapes, rtol) for weight in weights]))
    return (_each(network, [_operator_frobenius(weight, shapes) for weight in weights]) / spectral) ** 2


def log_product(norms: Float[Tensor, "*models layers"]) -> Float[Tensor, "*models"]:
    """log Π_i ‖W_i‖ = Σ_i log ‖W_i‖, in float64: the product itself may overflow. -inf where a norm is zero."""
    return norms.double().log().sum(-1)


def distances(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    *,
    norm: str | tuple[float | int, float | int] = "frobenius",
    input_shape: tuple[int, ...] | None = None,
    rtol: float = 1e-4,
) -> Float[Tensor, "*models layers"]:
    """‖W - W⁰‖ of each layer; W⁰ are the weights of `initial`, with its own BatchNorm statistics folded.

    `norm`: `frobenius`, `spectral` (which needs `input_shape`, as `spectral_norms`) or a pair (p, q) for ‖·‖_{p,q}.
    Cost and errors as the norm asked for; networks of different layers: ValueError.
    """
    network = Network.of(network)
    differences = _differences(network, Network.of(initial))
    if norm == "frobenius":
        return _each(network, [_frobenius(weight) for weight in differences])
    if norm == "spectral":
        if input_shape is None:
            raise ValueError("input_shape is missing; the spectral norm needs the shape of one sample")
        shapes = _shapes(network, input_shape)
        return _each(network, [_spectral(weight, shapes, rtol) for weight in differences])
    if isinstance(norm, str):
        raise ValueError(f"norm {norm!r} is unknown; it must be 'frobenius', 'spectral' or a pair (p, q)")
    return _each(network, [_group(weight, *norm) for weight in differences])


def log_spectral_complexity(
    network: nn.Module | Network, initial: nn.Module | Network, *, input_shape: tuple[int, ...], rtol: float = 1e-4
) -> Float[Tensor, "*models"]:
    """The logarithm of `spectral_complexity`, in float64: of a deep network the value itself may overflow."""
    spectral = _divisors(spectral_norms(network, input_shape=input_shape, rtol=rtol)).double()
    ratios = distances(network, initial, norm=(2, 1)).double() / spectral
    return log_product(spectral) + 1.5 * (ratios ** (2 / 3)).sum(-1).log()


def spectral_complexity(
    network: nn.Module | Network, initial: nn.Module | Network, *, input_shape: tuple[int, ...], rtol: float = 1e-4
) -> Float[Tensor, "*models"]:
    """R = Π_i ‖W_i‖₂ (Σ_i (‖W_i - W_i⁰‖_{2,1} / ‖W_i‖₂)^{2/3})^{3/2}, for 1-Lipschitz activations, in float64.

    Theorem 1.1 of Bartlett, Foster & Telgarsky (2017), rows of W_i being incoming weights; a kernel's (2, 1) norm is
    that of its matrix [outputs, inputs x taps]. Infinite beyond 1e308: see `log_spectral_complexity`.
    Cost and errors as `spectral_norms` and `distances`; a layer of zeros: ValueError.
    """
    return log_spectral_complexity(network, initial, input_shape=input_shape, rtol=rtol).exp()


def log_frobenius_complexity(
    network: nn.Module | Network, initial: nn.Module | Network, *, input_shape: tuple[int, ...], rtol: float = 1e-4
) -> Float[Tensor, "*models"]:
    """log d Π_i ‖W_i‖₂ (Σ_i h_i ‖W_i - W_i⁰‖_F² / ‖W_i‖₂²)^{1/2} over d layers with h_i outputs each, in float64.

    The bound of Neyshabur, Bhojanapalli & Srebro (2018) is in proportion to it over the margin and the root of the
    number of samples; there W⁰ = 0, in their code it is the initialization. Errors as `spectral_complexity`.
    """
    network = Network.of(network)
    spectral = _divisors(spectral_norms(network, input_shape=input_shape, rtol=rtol)).double()
    ratios = distances(network, initial).double() / spectral
    outputs = ratios.new_tensor([weight.rows.shape[1] for weight in _weights(network)])
    return math.log(len(outputs)) + log_product(spectral) + 0.5 * (outputs * ratios**2).sum(-1).log()


def log_path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """The logarithm of `path_norm`, in float64: computed with a running scale, it neither overflows nor underflows."""
    network = Network.of(network)
    if not p > 0:
        raise ValueError(f"p is {p}; it must be positive")
    weights = _weights(network)
    if network.graph is None:
        raise ValueError("network: torch.fx can't trace this module, and a path norm needs its graph")
    if registered := [weight.name for weight in weights if type(weight.operation) in _REGISTERED]:
        raise ValueError(f"network: {', '.join(registered)} is of a registered type, which path norms don't know")
    ones = weights[0].value.new_ones(1, *_shape(input_shape))

    def of_one(values: dict[str, Tensor], biases: dict[str, Tensor]) -> Tensor:
        return _Paths(network, values, biases, p).log_sum(ones)

    values = {weight.name: weight.value for weight in weights}
    biases = {weight.name: weight.bias for weight in weights if weight.bias is not None}
    try:
        if network.size is not None:
            return vmap(of_one)(values, biases)
        return of_one(*({name: tensor[0] for name, tensor in tensors.items()} for tensors in (values, biases)))
    except RuntimeError as error:
        raise ValueError(f"input_shape {tuple(input_shape)} does not fit the network: {error}") from error


def path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """Σ_paths Π |w|^p over all paths from an input or a bias to an output, no root, in float64 (Neyshabur et al. 2015).

    One forward pass of an input of ones with |w|^p for w. BatchNorm is folded, biases are inputs of one, a skip counts
    1, an average over k values 1/k^p, a max-pool the sum of its window (an upper bound: Gonon et al. 2024),
    activations 1: those with φ(0) = 0 and slopes of at most 1, others are refused.
    Cost: one forward pass of one sample and two passes over the weights. Infinite beyond 1e308: see `log_path_norm`.
    An operation whose paths aren't known, a tied weight, an untraceable network: ValueError, which names it.
    """
    return log_path_norm(network, input_shape=input_shape, p=p).exp()


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
    if not isinstance(convolution, _CONV + _TRANSPOSED):
        raise ValueError(f"convolution is a {type(convolution).__name__}; it must be a convolution of torch.nn")
    weight = _upcast(convolution.weight.detach()).unsqueeze(0)
    _fits(convolution, weight, _shape(input_shape))
    norm = _conv(convolution, weight, _shape(input_shape), rtol, max_passes)
    return replace(norm, value=norm.value[0], residual=norm.residual[0])


# Layers and their weights


@dataclass(frozen=True)
class _Layer:
    name: str
    operation: nn.Module
    folded: str | None = None  # the BatchNorm whose scale the weights take in


@dataclass(frozen=True)
class _Weight:
    """A layer's weights with BatchNorm folded; in front an axis of models, of one for a single network."""

    name: str
    operation: nn.Module
    value: Tensor
    bias: Tensor | None

    @property
    def rows(self) -> Float[Tensor, "models outputs inputs"]:
        """Incoming weights, a row for each output."""
        if isinstance(self.operation, _TRANSPOSED):
            return _grouped(self.operation, self.value).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.value.unsqueeze(-1) if isinstance(self.operation, _NORM) else self.value.flatten(2)


def _layers(network: Network) -> list[_Layer]:
    network.require_eval()
    known = _known(network)
    if "" in known:  # the network is one layer, which fx traces into
        return [_Layer("", known[""])]
    if network.graph is None:
        if norms := [name for name, module in known.items() if isinstance(module, _NORM)]:
            raise ValueError(
                f"network: torch.fx can't trace this module, so what {norms[0]} normalizes is unknown; "
                "fold its BatchNorm first (torch.nn.utils.fusion)"
            )
        return [_Layer(name, module) for name, module in known.items()]
    layers: dict[str, _Layer] = {}
    previous = None
    for node in network.graph.nodes:
        owner = next((name for name in _owners(node) if name in known), None)
        inside = owner == previous and node.target != owner  # one more node of a registered module
        previous = owner
        if owner is None or inside:
            continue
        if owner in layers or owner in {layer.folded for layer in layers.values()}:
            raise ValueError(f"network: {owner} runs more than once; norms of tied weights are not defined here")
        if isinstance(known[owner], _NORM) and (layer := _folds_into(node.args[0], layers, known[owner])):
            layers[layer.name] = replace(layer, folded=owner)
        else:
            layers[owner] = _Layer(owner, known[owner])
    return list(layers.values())


def _known(network: Network) -> dict[str, nn.Module]:
    """The layers whose norms are known. Weights that none of them counts, or that two share, are refused."""
    known: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    for name, module in network.module.named_modules():
        if any(type(known.get(above)) in _REGISTERED for above in _above(name)):
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if (other := owners.setdefault(id(parameter), _join(name, part))) != _join(name, part):
                raise ValueError(f"network: {other} and {_join(name, part)} are one tied weight; untie it first")
        if type(module) in _REGISTERED or isinstance(module, (*_WEIGHTED, _NORM)):
            known[name] = module
            if isinstance(module, _WEIGHTED) and "weight" not in module._parameters:
                raise ValueError(
                    f"network: the weight of {name or 'the module'} is computed from other tensors; make it a "
                    "parameter first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
                )
        elif module._parameters:
            kind = type(module).__name__
            raise ValueError(
                f"network: {name or 'the module itself'} is of type {kind}, whose norm is unknown; register it with "
                f"norms.register_norm({kind}, matrix), matrix(layer, tensors) its matrix [outputs, inputs]"
            )
    return known


def _above(name: str) -> list[str]:
    """The names of the modules that hold this one."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def _owners(node: fx.Node) -> Iterator[str]:
    """The modules that a node runs in, outermost first, the module that it calls last."""
    yield from (name for name, _ in node.meta.get("nn_module_stack", {}).values())
    if node.op == "call_module":
        yield str(node.target)


def _folds_into(before: fx.Node, layers: dict[str, _Layer], norm: nn.Module) -> _Layer | None:
    """The layer that a BatchNorm directly follows, and nothing else does."""
    layer = layers.get(str(before.target)) if before.op == "call_module" and len(before.users) == 1 else None
    if layer is None or not isinstance(layer.operation, _WEIGHTED):
        return None
    outputs = layer.operation.out_features if isinstance(layer.operation, nn.Linear) else layer.operation.out_channels
    return layer if outputs == norm.num_features else None


def _weights(network: Network) -> list[_Weight]:
    tensors = {name: _upcast(tensor) for name, tensor in {**network.buffers, **network.params}.items()}
    if network.size is None:
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    weights = [_weight(layer, network, tensors) for layer in _layers(network)]
    if not weights:
        raise ValueError("network: it has no layer with weights; there is nothing to measure")
    return weights


def _weight(layer: _Layer, network: Network, tensors: Params) -> _Weight:
    name, operation = layer.name, layer.operation
    if type(operation) in _REGISTERED:
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        return _Weight(name, operation, vmap(lambda t: _REGISTERED[type(operation)](operation, t))(own), None)
    if isinstance(operation, _NORM):
        return _Weight(name, operation, *_scale_and_shift(name, operation, tensors))
    weight, bias = tensors[_join(name, "weight")], tensors.get(_join(name, "bias"))
    if layer.folded is not None:
        scale, shift = _scale_and_shift(layer.folded, network.module.get_submodule(layer.folded), tensors)
        bias = shift if bias is None else bias * scale + shift
        if isinstance(operation, _TRANSPOSED):
            scale = scale.view(len(scale), operation.groups, 1, -1, *[1] * (weight.ndim - 3))
            weight = (_grouped(operation, weight) * scale).flatten(1, 2)
        else:
            weight = weight * scale.view(*scale.shape, *[1] * (weight.ndim - 2))
    return _Weight(name, operation, weight, bias)


def _scale_and_shift(name: str, norm: nn.Module, tensors: Params) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation as x -> scale x + shift."""
    mean, variance = (tensors.get(_join(name, f"running_{moment}")) for moment in ("mean", "var"))
    if mean is None or variance is None:
        raise ValueError(f"network: {name} keeps no running statistics; train it with track_running_stats=True")
    scale = (variance + norm.eps).rsqrt()
    if (weight := tensors.get(_join(name, "weight"))) is not None:
        scale = scale * weight
    bias = tensors.get(_join(name, "bias"))
    return scale, (0 if bias is None else bias) - mean * scale


def _differences(network: Network, initial: Network) -> list[_Weight]:
    after, before = _weights(network), _weights(initial)
    for a, b in itertools.zip_longest(after, before):
        if a is None or b is None or a.name != b.name or a.value.shape != b.value.shape:
            odd = (a or b).name
            raise ValueError(f"initial differs from network at the layer {odd}; give the network's own start")
    return [replace(a, value=a.value - b.value) for a, b in zip(after, before, strict=True)]


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _grouped(operation: nn.Module, weight: Tensor) -> Float[Tensor, "models groups inputs outputs *taps"]:
    """The weights of a transposed convolution by groups: torch keeps them as [inputs, outputs a group, taps]."""
    return weight.unflatten(1, (operation.groups, -1))


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _each(network: Network, norms: list[Tensor]) -> Tensor:
    norms = torch.stack(norms, -1)
    return norms[0] if network.size is None else norms


def _divisors(norms: Tensor) -> Tensor:
    if not norms.all():
        raise ValueError("network: a layer has no weight other than zero, and this divides by its norm; leave it out")
    return norms


def _shape(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"input_shape is {shape}; it must be the shape of one sample, positive whole numbers")
    return shape


def _shapes(network: Network, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape [channels, …] of one sample at the input of each convolution, from one dry pass."""
    convolutions = [layer.name for layer in _layers(network) if isinstance(layer.operation, _CONV + _TRANSPOSED)]
    shape = _shape(input_shape)
    if not convolutions:
        return {}
    # A copy on the meta device: no arithmetic, no memory, and hooks that the module itself never sees.
    memo = {id(p): nn.Parameter(_upcast(p.detach()).to("meta"), False) for p in network.module.parameters()}
    memo |= {id(b): _upcast(b).to("meta") for b in network.module.buffers()}
    dry = copy.deepcopy(network.module, memo).eval()
    shapes = {}
    for name in convolutions:
        dry.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: shapes.update({name: tuple(args[0].shape[1:])})
        )
    dtype = next(tensor.dtype for tensor in memo.values() if tensor.is_floating_point())
    try:
        with torch.no_grad():
            dry(torch.empty(1, *shape, dtype=dtype, device="meta"))
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        raise ValueError(f"input_shape {shape} does not fit the network: {error}") from error
    return shapes


# Norms of one layer


def _frobenius(weight: _Weight) -> Float[Tensor, " models"]:
    return _vector_norm(weight.value.flatten(1), 2)


def _group(weight: _Weight, p: float | int, q: float | int) -> Float[Tensor, " models"]:
    for name, value in (("p", p), ("q", q)):
        if not value >= 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    return _vector_norm(_vector_norm(weight.rows, p), q)


def _vector_norm(x: Tensor, order: float | int) -> Tensor:
    """The norm over the last axis; float64 inside, where squares of float32 neither overflow nor underflow."""
    return torch.linalg.vector_norm(x, order, -1, dtype=torch.float64).to(x.dtype)


def _spectral(weight: _Weight, shapes: dict[str, tuple[int, ...]], rtol: float) -> Float[Tensor, " models"]:
    if isinstance(weight.operation, _NORM):
        return weight.value.abs().amax(-1)
    if weight.name in shapes:
        norm = _conv(weight.operation, weight.value, shapes[weight.name], rtol, _MAX_PASSES)
    else:
        norm = _dense(weight.value, rtol)
    if norm.passes and (norm.residual > rtol * norm.value).any():
        raise ValueError(f"rtol {rtol} is not reached for {weight.name} in {norm.passes} passes; ask for a larger rtol")
    return norm.value


def _dense(matrix: Float[Tensor, "models outputs inputs"], rtol: float) -> OperatorNorm:
    if min(matrix.shape[1:]) <= _GRAM_LIMIT:
        return _at_once(_matrix_norm(matrix))
    shape = matrix[:, 0].shape
    return _lanczos(lambda unit, x: (unit @ x.unsqueeze(-1)).squeeze(-1), matrix, shape, rtol, _MAX_PASSES)


def _at_once(value: Tensor) -> OperatorNorm:
    return OperatorNorm(value, torch.zeros_like(value), 0)


def _matrix_norm(matrix: Tensor) -> Tensor:
    """σ_max of a batch of matrices, the root of the largest eigenvalue of the smaller Gram matrix."""
    scale = _largest(matrix, (-2, -1))
    matrix = matrix / scale
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mH
    return torch.linalg.eigvalsh(matrix @ matrix.mH)[..., -1].clamp(min=0).sqrt() * scale[..., 0, 0]


def _largest(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The largest magnitude, 1 where all are zero: what to divide by before numbers are squared."""
    largest = x.abs().amax(dims, keepdim=True)
    return torch.where(largest > 0, largest, 1)


# Convolutions


def _apply(operation: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The linear part of a layer, with these weights for its own."""
    if isinstance(operation, nn.Linear):
        return F.linear(x, weight)
    if isinstance(operation, _CONV):
        return operation._conv_forward(x, weight, None)
    if isinstance(operation, _NORM):
        return x * weight.view(1, -1, *[1] * (x.ndim - 2))
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[_TRANSPOSED.index(type(operation))]
    geometry = (operation.stride, operation.padding, operation.output_padding, operation.groups, operation.dilation)
    return transposed(x, weight, None, *geometry)


def _fits(operation: nn.Module, weight: Tensor, shape: tuple[int, ...]) -> None:
    spatial = len(operation.kernel_size)
    if len(shape) != spatial + 1 or shape[0] != operation.in_channels:
        raise ValueError(
            f"input_shape is {shape}; this convolution takes {operation.in_channels} channels and {spatial} more axes"
        )
    try:
        _apply(operation, weight[0].to("meta"), torch.empty(1, *shape, dtype=weight.dtype, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"input_shape {shape} does not fit the convolution: {error}") from error


def _conv(operation: nn.Module, weight: Tensor, shape: tuple[int, ...], rtol: float, max_passes: int) -> OperatorNorm:
    if not rtol > 0:
        raise ValueError(f"rtol is {rtol}; it must be positive")
    padding = operation.padding
    unpadded = padding in ("same", "valid") or not any(padding)
    if isinstance(operation, _CONV) and set(operation.kernel_size) == {1} and unpadded:
        # Pixel by pixel the same matrix; a stride leaves pixels out, which changes nothing.
        return _at_once(_matrix_norm(weight.flatten(2).unflatten(1, (operation.groups, -1))).amax(-1))
    if isinstance(operation, _CONV) and operation.padding_mode == "circular" and set(operation.stride) == {1}:
        image = torch.empty(1, *shape, dtype=weight.dtype, device="meta")
        if _apply(operation, weight[0].to("meta"), image).shape[2:] == image.shape[2:]:
            return _at_once(_circular_norm(weight, shape[1:], operation))

    def convolve(unit: Tensor, x: Tensor) -> Tensor:
        if len(unit) == 1:
            return _apply(operation, unit[0], x)
        return vmap(lambda w, image: _apply(operation, w, image.unsqueeze(0)).squeeze(0))(unit, x)

    return _lanczos(convolve, weight, (len(weight), *shape), rtol, max_passes)


def _circular_norm(
    weight: Float[Tensor, "models outputs inputs *taps"], sizes: tuple[int, ...], operation: nn.Module
) -> Float[Tensor, " models"]:
    """The largest singular value over the frequencies of the kernel's Fourier transform [outputs, inputs].

    A real kernel has K̂(-f) equal to the conjugate of K̂(f): half of the first axis of frequencies is enough.
    """
    scale = _largest(weight, tuple(range(1, weight.ndim)))
    kernel = (weight / scale).flatten(3).movedim(3, 1).unflatten(2, (operation.groups, -1)).flatten(3)
    kernel = kernel.transpose(1, 2).to(torch.promote_types(weight.dtype, torch.complex64))
    half = (sizes[0] // 2 + 1, *sizes[1:])
    steps = torch.tensor(
        [dilation / n for dilation, n in zip(operation.dilation, sizes, strict=True)], dtype=torch.float64
    )
    taps = _grid(operation.kernel_size, weight.device) * steps.to(weight.device)
    turns = _grid(half, weight.device) @ taps.T
    waves = torch.polar(torch.ones_like(turns), -2 * math.pi * turns).to(kernel.dtype)
    matrix = (weight.shape[1] // operation.groups, weight.shape[2])
    tops = []
    for chunk in waves.split(max(1, _SPECTRUM_CHUNK // math.prod(weight.shape[:3]))):
        spectrum = (chunk @ kernel).flatten(1, 2).unflatten(2, matrix)
        tops.append(_top_eigenvalue(spectrum @ spectrum.mH if matrix[0] <= matrix[1] else spectrum.mH @ spectrum))
    return torch.stack(tops).amax(0).clamp(min=0).sqrt() * scale.flatten()


def _grid(sizes: tuple[int, ...], device: torch.device) -> Float[Tensor, "points axes"]:
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _top_eigenvalue(grams: Tensor, few: int = 32) -> Float[Tensor, " models"]:
    """The largest eigenvalue of each model's many Hermitian matrices [models, matrices, n, n].

    The best few after some power steps give a lower bound t. A matrix G has none above t where t - G has a Cholesky
    factor, at a quarter of the price of eigenvalues, which only the rest is asked for.
    """
    if grams.shape[1] <= 2 * few:
        return torch.linalg.eigvalsh(grams)[..., -1].amax(1)
    x = grams[..., :1]
    for _ in range(4):
        x = grams @ (x / _largest(x, (-2, -1)))
    growth = (grams @ x).abs().square().sum((-2, -1)) / x.abs().square().sum((-2, -1)).clamp(min=1e-30)
    best = growth.topk(few, 1).indices[..., None, None].expand(-1, -1, *grams.shape[2:])
    lower = torch.linalg.eigvalsh(grams.gather(1, best))[..., -1].amax(1)
    shifted = -grams
    shifted.diagonal(dim1=-2, dim2=-1).add_(lower[:, None, None])
    above = torch.linalg.cholesky_ex(shifted).info > 0
    return lower.scatter_reduce(0, above.nonzero()[:, 0], torch.linalg.eigvalsh(grams[above])[:, -1], "amax")


def _lanczos(
    apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, shape: tuple[int, ...], rtol: float, max_passes: int
) -> OperatorNorm:
    """σ_max of the map x -> apply(weight, x), for each model, by Golub-Kahan bidiagonalization from a random image.

    Nothing is reorthogonalized: that would guard against copies of singular values, and copies of the largest one do
    no harm (Paige 1980). So five images are all that is held. One host read in `_CHECK_EVERY` steps.
    """
    scale = _largest(weight, tuple(range(1, weight.ndim)))
    unit, scale = weight / scale, scale.flatten()
    generator = torch.Generator(weight.device).manual_seed(0)
    v, _ = _normalized(torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device))
    with torch.enable_grad():
        zero = torch.zeros_like(v).requires_grad_()
        image = apply(unit, zero)

    def transposed(u: Tensor) -> Tensor:
        return torch.autograd.grad(image, zero, u, retain_graph=True)[0]

    u, alpha = _normalized(apply(unit, v))
    alphas, betas = [alpha], []
    read = np.empty((2, 0, shape[0]))
    while True:
        v, beta = _normalized(transposed(u) - _by_model(alpha, v) * v)
        betas.append(beta)
        passes = 2 * len(betas)
        last = passes + 2 > max_passes
        if last or len(betas) % _CHECK_EVERY == 0:
            new = slice(read.shape[1], None)
            fresh = torch.stack([torch.stack(alphas[new]), torch.stack(betas[new])])
            read = np.concatenate([read, fresh.double().cpu().numpy()], 1)
            values, residuals = zip(*(_top_of_bidiagonal(a, b) for a, b in read.transpose(2, 0, 1)), strict=True)
            if last or all(r <= rtol * s for s, r in zip(values, residuals, strict=True)):
                return OperatorNorm(v.new_tensor(values) * scale, v.new_tensor(residuals) * scale, passes)
        u, alpha = _normalized(apply(unit, v) - _by_model(beta, u) * u)
        alphas.append(alpha)


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / ‖x‖ and ‖x‖ of each model; zero stays zero, for Lanczos is done with a model whose images run out."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return x / _by_model(torch.where(norm > 0, norm, 1), x), norm


def _by_model(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def _top_of_bidiagonal(alphas: np.ndarray, betas: np.ndarray) -> tuple[float, float]:
    """The largest singular value of B, α its diagonal and β above it, and the residual of its pair β_k |x_k|."""
    diagonal = alphas**2
    diagonal[:-1] += betas[:-1] ** 2
    k = len(alphas) - 1
    value, vector = eigh_tridiagonal(diagonal, alphas[1:] * betas[:-1], select="i", select_range=(k, k))
    return math.sqrt(max(value[0], 0.0)), betas[-1] * abs(vector[-1, 0])


def _operator_frobenius(weight: _Weight, shapes: dict[str, tuple[int, ...]]) -> Float[Tensor, " models"]:
    """‖A‖_F of the layer's linear map."""
    if weight.name not in shapes:
        return _frobenius(weight)
    operation, shape = weight.operation, shapes[weight.name]
    scale = _largest(weight.value, tuple(range(1, weight.value.ndim)))
    unit = weight.value / scale
    if operation.padding_mode == "zeros":
        ones = unit.new_ones(1, *shape)
        squares = torch.stack([_apply(operation, w**2, ones).sum() for w in unit])
    else:
        # Taps that meet the same pixel add up before they are squared.
        taps = unit.flatten(3).flatten(1, 2)
        squares = ((taps.mT @ taps) * _meetings(operation, shape[1:], unit)).sum((1, 2))
    return squares.sqrt() * scale.flatten()


def _meetings(operation: nn.Module, sizes: tuple[int, ...], like: Tensor) -> Float[Tensor, "taps taps"]:
    """At how many places each two taps of the kernel meet the same pixel."""
    pixels = torch.arange(math.prod(sizes), dtype=torch.float64, device=like.device).view(1, 1, *sizes)
    padded = F.pad(pixels, operation._reversed_padding_repeated_twice, mode=operation.padding_mode)[0, 0]
    geometry = list(zip(padded.shape, operation.kernel_size, operation.stride, operation.dilation, strict=True))
    met = []
    for tap in itertools.product(*(range(k) for k in operation.kernel_size)):
        ends = [n - (k - 1 - t) * d for t, (n, k, _, d) in zip(tap, geometry, strict=True)]
        where = [slice(t * d, end, s) for t, end, (_, _, s, d) in zip(tap, ends, geometry, strict=True)]
        met.append(padded[tuple(where)].flatten())
    met = torch.stack(met)
    return torch.stack([(met == tap).sum(1) for tap in met]).to(like.dtype)


# Paths

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MOVES = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_ACTIVATION_CALLS = {F.relu, F.relu6, F.hardtanh, F.tanh, torch.relu, torch.tanh, "relu", "relu_", "tanh"}
_MOVE_CALLS = {torch.flatten, torch.cat, operator.getitem, torch.add, operator.add, operator.iadd}
_MOVE_CALLS |= {getattr, "size", "flatten", "view", "reshape", "permute", "transpose", "contiguous"}
_MOVE_CALLS |= {"squeeze", "unsqueeze", "sum"}
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class _Paths(fx.Interpreter):
    """The sum over paths, a node of the graph at a time. All values alive are kept as multiples of exp(self.log)."""

    def __init__(self, network: Network, weights: dict[str, Tensor], biases: dict[str, Tensor], p: float | int):
        super().__init__(network.module, graph=network.graph)
        self.weights, self.biases = _with_tops(weights, p), _with_tops(biases, p)
        self.folded = {layer.folded for layer in _layers(network)}
        self.p, self.node = p, None
        self.extra_traceback = False  # errors here name their operation themselves

    def log_sum(self, ones: Tensor) -> Tensor:
        self.log = torch.zeros((), dtype=torch.float64, device=ones.device)
        out = self.run(ones)
        if not isinstance(out, Tensor):
            raise ValueError(f"network: it returns a {type(out).__name__}; a path norm needs one tensor")
        return out.double().sum().log() + self.log

    def run_node(self, node: fx.Node):
        self.node = node
        return super().run_node(node)

    def call_module(self, target, args, kwargs):
        layer, x = self.fetch_attr(target), args[0]
        if target in self.weights:
            return self._weighted(target, layer, x)
        if target in self.folded or isinstance(layer, _ACTIVATIONS):
            return x
        if isinstance(layer, _MOVES):
            return layer(x)
        if isinstance(layer, nn.Hardtanh) and layer.min_val <= 0 <= layer.max_val:
            return x
        if isinstance(layer, nn.LeakyReLU) and abs(layer.negative_slope) <= 1:
            return x
        kind = type(layer).__name__
        if kind.startswith("AvgPool"):
            window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
            return self._average(x, *window, getattr(layer, "divisor_override", None))
        if kind.startswith("MaxPool"):
            return self._maximum(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
        if kind.startswith("AdaptiveAvgPool"):
            return self._adaptive(x, layer.output_size, self.p)
        if kind.startswith("AdaptiveMaxPool"):
            return self._adaptive(x, layer.output_size, 0)
        raise self._unknown(kind)

    def get_attr(self, target, args, kwargs):
        raise self._unknown("a tensor that is no weight of a known layer")

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_function)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_method)

    def _call(self, target, args, kwargs, plainly: Callable):
        values = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d) or target in _ACTIVATION_CALLS:
            return args[0]
        if not values and target is not torch.cat:
            return plainly(target, args, kwargs)  # arithmetic on shapes
        if target in (torch.add, operator.add, operator.iadd) and (len(values) != 2 or kwargs):
            raise self._unknown("addition of a constant")
        if target is operator.iadd:
            return values[0] + values[1]
        if target in _MOVE_CALLS:
            return plainly(target, args, kwargs)
        if target in (torch.sub, operator.sub) and len(values) == 2 and not kwargs:
            return values[0] + values[1]
        if target in (torch.mean, "mean"):
            mean = plainly(target, args, kwargs)
            return mean * (args[0].numel() / mean.numel()) ** (1 - self.p)
        if target is F.pad and kwargs.get("value", args[3] if len(args) > 3 else None) in (None, 0):
            return plainly(target, args, kwargs)
        if target in _AVERAGES:
            return self._average(*args, **kwargs)
        if target in _MAXIMA:
            return self._maximum(*args, **kwargs)
        if target in _ADAPTIVE_AVERAGES:
            return self._adaptive(*args, **kwargs, power=self.p)
        raise self._unknown(target if isinstance(target, str) else getattr(target, "__name__", str(target)))

    def _unknown(self, kind: str) -> ValueError:
        return ValueError(f"network: the operation {self.node.name} ({kind}) has no known paths; leave it out")

    def _weighted(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """|W|^p x + |b|^p, everything alive rescaled so that its largest value is one."""
        weight, top, log = self.weights[name]
        y = _apply(layer, _power(weight / top, self.p), x)
        dying = self.user_to_last_uses.get(self.node, [])
        alive = {node: v for node, v in self.env.items() if node not in dying and isinstance(v, Tensor)}
        peaks = [y.amax().double().log() + log, *(value.amax().double().log() for value in alive.values())]
        if name in self.biases:
            bias, top, bias_log = self.biases[name]
            bias_log = bias_log - self.log
            peaks.append(bias_log)
        peak = torch.stack(peaks).amax().clamp(min=torch.finfo(torch.float64).min)  # of zeros it is -inf
        for node, value in alive.items():
            self.env[node] = value * (-peak).exp().to(value.dtype)
        y = y * (log - peak).exp().to(y.dtype)
        if name in self.biases:
            bias = _power(bias / top, self.p) * (bias_log - peak).exp().to(y.dtype)
            y = y + (bias if isinstance(layer, nn.Linear) else bias.view(1, -1, *[1] * (y.ndim - 2)))
        self.log = self.log + peak
        return y

    def _average(
        self, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ) -> Tensor:
        """Σ x / k^p over each window, k its own divisor, which padding and a ragged edge change."""
        total = _window_sum(x, kernel_size, stride, padding, ceil_mode)
        ones = torch.ones_like(x[:1, :1])
        average = _AVERAGES[x.ndim - 3]
        window = (kernel_size, stride, padding, ceil_mode, count_include_pad)
        mean = average(ones, *window, *([] if x.ndim == 3 else [divisor_override]))
        return total * (mean / _window_sum(ones, kernel_size, stride, padding, ceil_mode)) ** self.p

    def _maximum(
        self, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ) -> Tensor:
        if return_indices or set(_tuple(dilation, 1)) != {1}:
            raise self._unknown("max-pool with dilation or indices")
        return _window_sum(x, kernel_size, stride, padding, ceil_mode)

    def _adaptive(self, x: Tensor, output_size, power: float | int) -> Tensor:
        mean = _ADAPTIVE_AVERAGES[x.ndim - 3](x, output_size)
        for axis in range(2, x.ndim):
            size, out = x.shape[axis], mean.shape[axis]
            counts = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
            weights = mean.new_tensor(counts) ** (1 - power)
            mean = mean * weights.view(-1, *[1] * (x.ndim - 1 - axis))
        return mean


def _with_tops(tensors: dict[str, Tensor], p: float | int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Each with its largest magnitude (1 where all is zero), to divide by, and the logarithm of its p-th power."""
    if not tensors:
        return {}
    # Twice as fast as the largest of the magnitudes, which would fill memory first.
    tops = torch.stack([torch.maximum(t.amax(), -t.amin()) for t in tensors.values()])
    logs = p * tops.double().log()
    return dict(zip(tensors, zip(tensors.values(), torch.where(tops > 0, tops, 1), logs, strict=True), strict=True))


def _power(x: Tensor, p: float | int) -> Tensor:
    """|x|^p, in place: the weights are the one large thing here."""
    return x.mul_(x) if p == 2 else x.abs_() if p == 1 else x.abs_().pow_(p)


def _window_sum(x: Tensor, kernel_size, stride, padding, ceil_mode: bool) -> Tensor:
    spatial = x.ndim - 2
    kernel, padding = _tuple(kernel_size, spatial), _tuple(padding, spatial)
    stride = kernel if stride is None else _tuple(stride, spatial)
    if spatial == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, divisor_override=1)
    if spatial == 2:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, divisor_override=1)
    flat = F.avg_pool2d(x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding), ceil_mode, divisor_override=1)
    return flat.squeeze(2)


def _tuple(value, length: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * length
