"""The layers of a network that have weights, with BatchNorm folded into them, and the shapes at which they work."""

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import vmap

from genlib.network.blocks import layer_blocks, runs_step_by_step
from genlib.network.calls import altered
from genlib.network.functional import Network, Params, aliases
from genlib.network.operations import traced
from genlib.network.parts import Parts, above, joined
from genlib.network.precision import upcast_network
from genlib.network.recognition import (
    BATCH_NORM,
    CONVOLUTIONS,
    INSTEAD,
    TRANSPOSED,
    WEIGHTED,
    WeightedLayer,
    computed_weights,
    computes_weights,
    keeps_statistics,
    recognized,
    refusal,
    require_matrix,
    scale_and_shift,
)

__all__ = [
    "BATCH_NORM",
    "CONVOLUTIONS",
    "MORE",
    "REGISTERED",
    "TRANSPOSED",
    "TWICE",
    "FoldedWeight",
    "WeightedLayer",
    "checked_shape",
    "folded_weights",
    "only_described",
    "traced_layers",
    "unknown_modules",
    "weight_differences",
]

MORE = "is called with more than its input; norms are of what it does to one input by itself: give it no more"
EVERYTHING = Parts()
TWICE = "runs more than once; norms of tied weights are not defined here"
REGISTERED: dict[type[nn.Module], Callable[[nn.Module, Params], Tensor]] = {}


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

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Outputs, inputs and taps: of a convolution its channels and the places of its kernel."""
        shape, taps = self.value.shape, math.prod(self.value.shape[3:])
        if isinstance(self.operation, BATCH_NORM):
            return shape[1], shape[1], 1
        if isinstance(self.operation, TRANSPOSED):
            return shape[2] * self.operation.groups, shape[1], taps
        groups = self.operation.groups if isinstance(self.operation, CONVOLUTIONS) else 1
        return shape[1], shape[2] * groups, taps


def traced_layers(network: Network, parts: Parts = EVERYTHING) -> tuple[list[WeightedLayer], fx.Graph | None]:
    """The layers with weights in the order in which they run, and the graph in which each of them is one call.

    The matrices of one module follow one another in the order of its parameters.
    """
    network.require_eval()
    known = _known(network, parts)
    asked = [name for name, layers in known.items() if any(parts.wanted(layer.name) for layer in layers)]
    graph = _graph(network, known)
    faithful = graph is not None
    if graph is None and network.arguments is None:
        leaves = {*known, *(name for name, _ in network.module.named_modules() if parts.excluded(name))}
        graph = traced(network.module, leaves=leaves)
    if graph is None:
        _require_no_batch_norm(network, known)
        found, odd = {name: known[name] for name in _as_they_run(network, asked)}, {}
    else:
        found, odd, within = _as_traced(network, graph, known)
        faithful &= not within
    listed = [layer for layer in itertools.chain(*found.values()) if parts.wanted(layer.name)]
    modules = dict.fromkeys([*asked, *(layer.folded for layer in listed if layer.folded is not None)])
    if refused := [odd[name] for name in modules if name in odd]:
        raise ValueError(f"network: {refused[0]}")
    _require_own_weights(network, modules, graph)
    return listed, graph if faithful else None


def _as_traced(
    network: Network, graph: fx.Graph, known: dict[str, list[WeightedLayer]]
) -> tuple[dict[str, list[WeightedLayer]], dict[str, str], bool]:
    """The layers by module as they run, with BatchNorm folded; what is odd about a module; and whether one of torch's
    own, which fx doesn't look into, holds layers, as a TransformerEncoderLayer does."""
    inside: dict[str, list[str]] = {}
    for name in known:
        for outer in (*above(name), name):
            inside.setdefault(outer, []).append(name)
    layers: dict[str, list[WeightedLayer]] = {}
    odd, ran, within = {}, set(), False
    for node in graph.nodes:
        for name in inside.get(str(node.target), ()) if node.op == "call_module" else ():
            module, found = network.module.get_submodule(name), known[name]
            if name != node.target:
                _require_no_batch_norm(network, {name: found})
                within = True
            elif found[0].block is None and len(node.args) + len(node.kwargs) != 1:
                odd[name] = f"{name} {MORE}"
            into = _folds_into(node, layers, found[0])
            at = name if into is None else into.name
            if name not in ran:
                layers[at] = found if into is None else [replace(into, folded=name)]
            elif not runs_step_by_step(module):
                odd[name] = odd[at] = f"{name} {TWICE}"
            ran.add(name)
    return layers, odd, within


def _require_own_weights(network: Network, modules: Collection[str], graph: fx.Graph | None) -> None:
    """Refuse a weight of one of these modules that is another's too, or that is used outside of it."""
    owners: dict[int, str] = {}
    for name in modules:
        for part, parameter in network.module.get_submodule(name).named_parameters():
            if (other := owners.setdefault(id(parameter), joined(name, part))) != joined(name, part):
                raise ValueError(f"network: {other} and {joined(name, part)} are one tied weight; untie it first")
    nodes = [] if graph is None else graph.nodes
    read = [str(node.target) for node in nodes if node.op == "get_attr" and not only_described(node)]
    names = aliases(network.module) if read else {}
    own = {names[parameter] for parameter in owners.values()} if read else set()
    if loose := [name for name in read if names.get(name) in own]:
        raise ValueError(f"network: {loose[0]} is used outside its layer; norms of tied weights are not defined here")


def _require_no_batch_norm(network: Network, known: dict[str, list[WeightedLayer]]) -> None:
    if norms := [name for name, (layer, *_) in known.items() if isinstance(layer.operation, BATCH_NORM)]:
        raise ValueError(
            f"network: {network.untraced}, so what {norms[0]} normalizes is unknown; "
            "fold its BatchNorm first (torch.nn.utils.fusion)"
        )


def _as_they_run(network: Network, known: Collection[str]) -> list[str]:
    """The names of the modules in their order, where a forward pass was seen, and each is one that runs once."""
    if network.ran is None:
        return list(known)
    for name in known:
        times = network.ran.count(name)
        if times != 1 and not (times and runs_step_by_step(network.module.get_submodule(name))):
            what = TWICE if times else "doesn't run; leave it out"
            raise ValueError(f"network: {name} {what}")
    return [name for name in dict.fromkeys(network.ran) if name in known]


def only_described(node: fx.Node) -> bool:
    """Whether no more than the shape, type and device of the node's tensor is asked for."""
    described = ("shape", "dtype", "device", "ndim")
    return all(
        user.target in ("size", "dim") or (user.target is getattr and user.args[1] in described) for user in node.users
    )


def _graph(network: Network, known: Collection[str]) -> fx.Graph | None:
    if network.arguments is not None:
        return None
    if "" in known:  # the network is one layer
        graph = fx.Graph()
        graph.output(graph.call_module("", (graph.placeholder("inputs"),)))
        return graph
    ours = all(type(network.module.get_submodule(name)).__module__.startswith("torch.nn") for name in known)
    return network.graph if ours else traced(network.module, leaves=known)


def _known(network: Network, parts: Parts) -> dict[str, list[WeightedLayer]]:
    """The layers whose norms are known, by module. Weights that none of them counts are refused."""
    known, unknown = _read(network, parts)
    for name, module in unknown.values():
        rest = "" if computes_weights(module) else "; exclude=norms.unknown_parts(network) gives the norms of the rest"
        raise ValueError(f"network: {refusal(name, module)}{rest}")
    if said := altered(network.module):
        raise ValueError(f"network: {said}, which may change what its layers do; remove it first")
    return known


def _read(network: Network, parts: Parts) -> tuple[dict[str, list[WeightedLayer]], dict[str, tuple[str, nn.Module]]]:
    """The layers that are known, by module, but for a BatchNorm that is excluded; and what else is wanted and has
    weights, with its module: that itself, or parameters of one that holds others."""
    known, unknown, names = {}, {}, set()
    for name, module in network.module.named_modules():
        names |= {name, *(joined(name, part) for part, _ in module.named_parameters(recurse=False))}
        if any(outer in known for outer in above(name)):
            continue
        layers = [] if type(module) in REGISTERED and parts.excluded(name) else _layers_of(name, module)
        names |= {layer.name for layer in layers}
        if layers and not (parts.excluded(name) and isinstance(layers[0].operation, BATCH_NORM)):
            known[name] = layers
        elif computes_weights(module) or keeps_statistics(module) or (module._parameters and not [*module.children()]):
            unknown[name] = name, module
        else:
            unknown |= {joined(name, part): (name, module) for part, _ in module.named_parameters(recurse=False)}
    parts.require_met(names)
    return known, {part: of for part, of in unknown.items() if parts.wanted(part)}


def unknown_modules(network: Network) -> dict[str, nn.Module]:
    """By name, what holds weights of no known layer, but for weights that something else computes; and what is never
    called, but has its weights read, as by a function of attention."""
    known, unknown = _read(network, EVERYTHING)
    nodes = [] if network.graph is None else network.graph.nodes
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    read = {holder for node in nodes if node.op == "get_attr" for holder in above(str(node.target))}
    uncalled = {name: network.module.get_submodule(name) for name in known if name in read - called}
    return uncalled | {part: module for part, (_, module) in unknown.items() if not computes_weights(module)}


def _layers_of(name: str, module: nn.Module) -> list[WeightedLayer]:
    """The layers that a module is, or none where it isn't known."""
    if type(module) in REGISTERED:
        return [_registered(name, module)]
    layer = recognized(name, module)
    return layer_blocks(name, module) if layer is None else [layer]


def _registered(name: str, module: nn.Module) -> WeightedLayer:
    try:
        double = copy.deepcopy(module).double()
        matrix = REGISTERED[type(module)](double, dict(double.named_parameters()) | dict(double.named_buffers()))
    except Exception as error:  # whatever the function that was given raises
        raise ValueError(
            f"network: the matrix registered for {type(module).__name__} fails for {name} "
            f"({type(error).__name__}: {error}); mend the function given to norms.register_norm"
        ) from error
    require_matrix(name, double, matrix.detach().double())
    return WeightedLayer(name, module)


def _folds_into(node: fx.Node, layers: dict[str, list[WeightedLayer]], norm: WeightedLayer) -> WeightedLayer | None:
    """The layer that a BatchNorm directly follows, and nothing else does."""
    before = node.all_input_nodes[0] if isinstance(norm.operation, BATCH_NORM) else None
    alone = before is not None and before.op == "call_module" and len(before.users) == 1
    layer, *_ = layers.get(str(before.target), [None]) if alone else [None]
    if layer is None or layer.block is not None or not isinstance(layer.operation, WEIGHTED):
        return None
    outputs = layer.operation.out_features if isinstance(layer.operation, nn.Linear) else layer.operation.out_channels
    return layer if outputs == norm.operation.num_features else None


def folded_weights(network: Network, layers: list[WeightedLayer] | None = None) -> list[FoldedWeight]:
    """The weights of the network's layers, which are looked for where they aren't given."""
    layers = traced_layers(network)[0] if layers is None else layers
    network = upcast_network(network)
    tensors = {**network.buffers, **network.params}
    if network.size is None:
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    weights = [_weight(layer, network, tensors) for layer in layers]
    if not weights:
        held = [f"{name} ({type(part).__name__})" for name, part in network.module.named_modules() if part._parameters]
        of_others = f" that is listed, but {', '.join(held[:3])}" if held else ""
        raise ValueError(f"network: it has no layer with weights{of_others}; there is nothing to measure")
    if odd := [weight.name for weight in weights if weight.value.is_complex()]:
        raise ValueError(f"network: {', '.join(odd)} has complex weights; norms here are of real ones: {INSTEAD}")
    return weights


def _weight(layer: WeightedLayer, network: Network, tensors: Params) -> FoldedWeight:
    name, operation, block = layer.name, layer.operation, layer.block
    own = _own(layer.module, tensors)
    if block is not None:
        matrix = own[block.parameter][:, block.rows]
        return FoldedWeight(name, operation, matrix.mT if block.transposed else matrix, None)
    if type(operation) in REGISTERED:
        return FoldedWeight(name, operation, vmap(lambda t: REGISTERED[type(operation)](operation, t))(own), None)
    if isinstance(operation, BATCH_NORM):
        return FoldedWeight(name, operation, *_scale_and_shift(name, operation.eps, own))
    weight, bias = (own["weight"], own.get("bias")) if layer.computed is None else computed_weights(layer, own)
    if layer.folded is not None:
        eps = network.module.get_submodule(layer.folded).eps
        scale, shift = _scale_and_shift(layer.folded, eps, _own(layer.folded, tensors))
        bias = shift if bias is None else bias * scale + shift
        if isinstance(operation, TRANSPOSED):
            scale = scale.view(len(scale), operation.groups, 1, -1, *[1] * (weight.ndim - 3))
            weight = (by_groups(operation, weight) * scale).flatten(1, 2)
        else:
            weight = weight * scale.view(*scale.shape, *[1] * (weight.ndim - 2))
    return FoldedWeight(name, operation, weight, bias)


def _own(name: str, tensors: Params) -> Params:
    """The tensors of one module, by the names that they have in it."""
    prefix = f"{name}." if name else ""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _scale_and_shift(name: str, eps: float, own: Params) -> tuple[Tensor, Tensor]:
    if not {"running_mean", "running_var"} <= own.keys():
        raise ValueError(f"network: {name} keeps no running statistics; train it with track_running_stats=True")
    return scale_and_shift(own, eps)


def weight_differences(after: list[FoldedWeight], before: list[FoldedWeight]) -> list[FoldedWeight]:
    for a, b in itertools.zip_longest(after, before):
        if a is None or b is None or a.name != b.name or a.value.shape != b.value.shape:
            odd = (a or b).name
            raise ValueError(f"initial differs from network at the layer {odd}; give the network's own start")
    return [replace(a, value=a.value - b.value) for a, b in zip(after, before, strict=True)]


def by_groups(operation: nn.Module, weight: Tensor) -> Float[Tensor, "models groups inputs outputs *taps"]:
    """The weights of a transposed convolution by groups: torch keeps them as [inputs, outputs a group, taps]."""
    return weight.unflatten(1, (operation.groups, -1))


def checked_shape(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else (input_shape,)
    if not isinstance(input_shape, Iterable) or not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"input_shape is {shape}; it must be the shape of one sample, positive whole numbers")
    return shape
