"""The layers of a network that have weights, with BatchNorm folded into them, and the shapes at which they work."""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import vmap

from genlib.network.functional import Network, Params
from genlib.network.precision import upcast, upcast_network

__all__ = [
    "BATCH_NORM",
    "CONVOLUTIONS",
    "REGISTERED",
    "TRANSPOSED",
    "FoldedWeight",
    "checked_shape",
    "folded_weights",
    "layer_input_shapes",
    "weight_differences",
    "weighted_layers",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
REGISTERED: dict[type[nn.Module], Callable[[nn.Module, Params], Tensor]] = {}


@dataclass(frozen=True)
class _Layer:
    name: str
    operation: nn.Module
    folded: str | None = None  # the BatchNorm whose scale the weights take in


@dataclass(frozen=True)
class FoldedWeight:
    """A layer's weights with BatchNorm folded; in front an axis of models, of one for a single network."""

    name: str
    operation: nn.Module
    value: Tensor
    bias: Tensor | None

    @property
    def rows(self) -> Float[Tensor, "models outputs inputs"]:
        """Incoming weights, a row for each output."""
        if isinstance(self.operation, TRANSPOSED):
            return by_groups(self.operation, self.value).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.value.unsqueeze(-1) if isinstance(self.operation, BATCH_NORM) else self.value.flatten(2)


def weighted_layers(network: Network) -> list[_Layer]:
    network.require_eval()
    known = _known(network)
    if "" in known:  # the network is one layer, which fx traces into
        return [_Layer("", known[""])]
    if network.graph is None:
        if norms := [name for name, module in known.items() if isinstance(module, BATCH_NORM)]:
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
        if isinstance(known[owner], BATCH_NORM) and (layer := _folds_into(node.args[0], layers, known[owner])):
            layers[layer.name] = replace(layer, folded=owner)
        else:
            layers[owner] = _Layer(owner, known[owner])
    return list(layers.values())


def _known(network: Network) -> dict[str, nn.Module]:
    """The layers whose norms are known. Weights that none of them counts, or that two share, are refused."""
    known: dict[str, nn.Module] = {}
    owners: dict[int, str] = {}
    for name, module in network.module.named_modules():
        if any(type(known.get(above)) in REGISTERED for above in _above(name)):
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if (other := owners.setdefault(id(parameter), _join(name, part))) != _join(name, part):
                raise ValueError(f"network: {other} and {_join(name, part)} are one tied weight; untie it first")
        if type(module) in REGISTERED or isinstance(module, (*_WEIGHTED, BATCH_NORM)):
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


def folded_weights(network: Network) -> list[FoldedWeight]:
    network = upcast_network(network)
    tensors = {**network.buffers, **network.params}
    if network.size is None:
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    weights = [_weight(layer, network, tensors) for layer in weighted_layers(network)]
    if not weights:
        raise ValueError("network: it has no layer with weights; there is nothing to measure")
    return weights


def _weight(layer: _Layer, network: Network, tensors: Params) -> FoldedWeight:
    name, operation = layer.name, layer.operation
    if type(operation) in REGISTERED:
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        return FoldedWeight(name, operation, vmap(lambda t: REGISTERED[type(operation)](operation, t))(own), None)
    if isinstance(operation, BATCH_NORM):
        return FoldedWeight(name, operation, *_scale_and_shift(name, operation, tensors))
    weight, bias = tensors[_join(name, "weight")], tensors.get(_join(name, "bias"))
    if layer.folded is not None:
        scale, shift = _scale_and_shift(layer.folded, network.module.get_submodule(layer.folded), tensors)
        bias = shift if bias is None else bias * scale + shift
        if isinstance(operation, TRANSPOSED):
            scale = scale.view(len(scale), operation.groups, 1, -1, *[1] * (weight.ndim - 3))
            weight = (by_groups(operation, weight) * scale).flatten(1, 2)
        else:
            weight = weight * scale.view(*scale.shape, *[1] * (weight.ndim - 2))
    return FoldedWeight(name, operation, weight, bias)


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


def weight_differences(network: Network, initial: Network) -> list[FoldedWeight]:
    after, before = folded_weights(network), folded_weights(initial)
    for a, b in itertools.zip_longest(after, before):
        if a is None or b is None or a.name != b.name or a.value.shape != b.value.shape:
            odd = (a or b).name
            raise ValueError(f"initial differs from network at the layer {odd}; give the network's own start")
    return [replace(a, value=a.value - b.value) for a, b in zip(after, before, strict=True)]


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def by_groups(operation: nn.Module, weight: Tensor) -> Float[Tensor, "models groups inputs outputs *taps"]:
    """The weights of a transposed convolution by groups: torch keeps them as [inputs, outputs a group, taps]."""
    return weight.unflatten(1, (operation.groups, -1))


def checked_shape(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"input_shape is {shape}; it must be the shape of one sample, positive whole numbers")
    return shape


def layer_input_shapes(network: Network, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape [channels, …] of one sample at the input of each convolution, from one dry pass."""
    convolutions = [
        layer.name for layer in weighted_layers(network) if isinstance(layer.operation, CONVOLUTIONS + TRANSPOSED)
    ]
    shape = checked_shape(input_shape)
    if not convolutions:
        return {}
    # A copy on the meta device: no arithmetic, no memory, and hooks that the module itself never sees.
    memo = {id(p): nn.Parameter(upcast(p.detach()).to("meta"), False) for p in network.module.parameters()}
    memo |= {id(b): upcast(b).to("meta") for b in network.module.buffers()}
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
