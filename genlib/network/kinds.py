"""The table of operations: which calls of a graph are linear, piecewise linear or smooth, by what they are given.

Some values of a graph are data, others aren't: shapes, numbers, weights, buffers. x * 0.5 is linear in the data and
x * x isn't, so the kind of a call hangs on its arguments. Nor is a comparison data, as x > 0: it changes only where one
linear piece ends and another begins. What is called linear may be affine.
"""

import operator
from collections.abc import Callable, Mapping
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from genlib.network.normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm

__all__ = [
    "CASTS",
    "CHOICES",
    "COMPARISONS",
    "COPIES",
    "IN_PLACE",
    "KINKS",
    "MODULES",
    "NONEXPANSIVE",
    "PRODUCTS",
    "RATIOS",
    "TABLE",
    "VIEWS",
    "asks",
    "data_nodes",
    "first",
    "kinds_of",
    "named",
    "views",
    "writes",
]


def named(*names: str) -> set[Callable | str]:
    """Methods of these names, and the functions of torch that do the same."""
    functions = (getattr(torch, name, None) for name in names)
    return {*names, *(function for function in functions if callable(function))}


def _sized(*names: str) -> set:
    """Layers and functions for one, two and three axes, by their names without the number."""
    return {getattr(nn if name[0].isupper() else F, f"{name}{d}d") for name in names for d in (1, 2, 3)}


IN_PLACE = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")}
CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"}
_DROPOUTS = {F.dropout, F.alpha_dropout, *_sized("dropout")}
# What they return may share its memory with what they are given.
VIEWS = {
    *named("flatten", "unflatten", "ravel", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "t"),
    *named("swapaxes", "swapdims", "movedim", "moveaxis", "chunk", "split", "tensor_split", "unbind"),
    *named("narrow", "select", "diagonal", "broadcast_to"),
    *("view", "view_as", "reshape_as", "expand", "expand_as", "unfold", "contiguous", *CASTS),
    *(getattr, operator.getitem, operator.pos),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.AlphaDropout, *_sized("Dropout"), *_DROPOUTS),
}
_JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack}
_JOINS |= {torch.column_stack}
# Each number that they return is the sum of some of those that they are given, or zero.
COPIES = {
    *(
        *VIEWS,
        *_JOINS,
        *named("clone", "sum", "roll", "flip", "fliplr", "flipud", "rot90", "index_select", "gather", "cumsum"),
    ),
    *(*named("tile", "repeat_interleave", "tril", "triu"), "repeat", F.unfold, F.fold, nn.Unfold, nn.Fold),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *_sized("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad"),
}
_MAPS = {
    *(*COPIES, *named("neg", "negative", "mean", "diff", "masked_fill"), operator.neg),
    *(F.pad, F.interpolate, F.grid_sample, F.batch_norm, *_sized("avg_pool", "adaptive_avg_pool")),
}
_SUMS = {operator.add, operator.sub, *named("add", "sub", "subtract", "rsub", "where"), *_JOINS}
_LIKE = {"view_as", "reshape_as", "expand_as", "type_as", "to"}  # of the second argument they take the shape or type
_SUMS |= _LIKE
PRODUCTS = {
    *(operator.mul, operator.matmul, *named("mul", "multiply", "matmul", "mm", "bmm", "mv")),
    *(F.linear, *_sized("conv", "conv_transpose")),
}
RATIOS = {operator.truediv, *named("div", "divide", "true_divide")}
_EXTREMES = named("max", "min")
_WITH_PLACES = {getattr(F, f"{kind}max_pool{d}d_with_indices") for kind in ("", "adaptive_") for d in (1, 2, 3)}
_WITH_PLACES |= _EXTREMES | named("sort", "topk")
# They return the larger or smaller numbers of two tensors, or some numbers of one tensor and their places in it.
CHOICES = _WITH_PLACES | named("maximum", "minimum")
COMPARISONS = {operator.gt, operator.lt, operator.ge, operator.le}
COMPARISONS |= named("gt", "lt", "ge", "le", "greater", "less", "greater_equal", "less_equal")
_BENT = {
    *(F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardsigmoid, F.threshold, F.softshrink, operator.abs),
    *named("relu", "relu_", "abs", "absolute", "clamp", "clip", "prelu", "hardshrink", "amax", "amin"),
    *(*_sized("max_pool", "adaptive_max_pool"), *_WITH_PLACES),
}
_BENT_TOGETHER = {*_EXTREMES, *COMPARISONS, *named("maximum", "minimum", "clamp_min", "clamp_max")}
_SMOOTH = {F.tanh, F.sigmoid, F.softplus, F.gelu, F.silu, F.softmax, F.layer_norm}
_SMOOTH |= named("tanh", "sigmoid", "softmax")

# The kind of an operation, which of its arguments may be data for that, and its kind otherwise.
TABLE: dict[Callable | str, tuple[str, str, str]] = {
    **dict.fromkeys(_MAPS, ("linear", "the first", "unknown")),
    **dict.fromkeys(_SUMS, ("linear", "all", "unknown")),
    **dict.fromkeys(
        PRODUCTS | {torch.einsum, torch.tensordot, *named("addmm", "baddbmm")}, ("linear", "one", "smooth")
    ),
    **dict.fromkeys(RATIOS, ("linear", "the first", "smooth")),
    **dict.fromkeys(_BENT, ("piecewise linear", "the first", "unknown")),
    **dict.fromkeys(_BENT_TOGETHER, ("piecewise linear", "all", "unknown")),
    **dict.fromkeys(_SMOOTH, ("smooth", "all", "unknown")),
}
MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys((operation for operation in COPIES if isinstance(operation, type)), "linear"),
    **dict.fromkeys((nn.Linear, *_sized("Conv", "ConvTranspose", "BatchNorm", "AvgPool", "AdaptiveAvgPool")), "linear"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, *_sized("ConstantPad")), "linear"),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid), "piecewise linear"),
    **dict.fromkeys((nn.Threshold, nn.Softshrink, nn.Hardshrink), "piecewise linear"),
    **dict.fromkeys(_sized("MaxPool", "AdaptiveMaxPool"), "piecewise linear"),
    **dict.fromkeys((nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Mish), "smooth"),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), "smooth"),
    **dict.fromkeys((nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d), "smooth"),
    **dict.fromkeys((SimplifiedBatchNorm, SimplifiedLayerNorm), "smooth"),
}
# The activations that were registered: where they bend, and whether φ(0) = 0 and no slope exceeds 1.
KINKS: dict[type[nn.Module] | Callable | str, Callable] = {}
NONEXPANSIVE: dict[type[nn.Module] | Callable | str, Callable[..., bool]] = {}

_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_DESCRIPTIONS = {"size", "dim", "ndimension", "new_zeros", "new_ones", "new_full", "new_tensor", "nelement", len}
_DESCRIPTIONS |= named("numel", "zeros_like", "ones_like", "full_like")
_RANDOM = named("rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "poisson")


def data_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value moves with the inputs, or with what a module returns, within one linear piece."""
    data: set[fx.Node] = set()
    for node in graph.nodes:
        given = _nodes((node.args, node.kwargs), data)
        if node.op in ("placeholder", "call_module") or (given and not _describes(node, given)):
            data.add(node)
    return data


def _nodes(arguments, among: set[fx.Node]) -> list[fx.Node]:
    """The nodes in a call's arguments, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, lambda node: found.append(node) if node in among else None)
    return found


def _describes(node: fx.Node, given: list[fx.Node]) -> bool:
    """Whether a call returns no data: a comparison, or what hangs on no more than shapes and types."""
    if asks(node):
        return given == [first(node)]
    return node.target in COMPARISONS or (node.target in _LIKE and first(node) not in given)


def asks(node: fx.Node) -> bool:
    """Whether a call asks for no more than the shape and type of its first argument."""
    return node.target in _DESCRIPTIONS or (node.target is getattr and node.args[1] in _ATTRIBUTES)


def first(node: fx.Node):
    """The first argument of a call."""
    return node.args[0] if node.args else node.kwargs.get("input")


def views(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether what a call returns may share its memory with its first argument; `layer` is the module that it calls."""
    return (type(layer) if layer else node.target) in VIEWS and not asks(node)


def kinds_of(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """The kind of each call in the graph of a module: `linear`, `piecewise linear`, `smooth` or `unknown`."""
    modules, data = dict(module.named_modules()), data_nodes(graph)
    return {node: _kind(node, modules, data) for node in graph.nodes if node.op.startswith("call")}


def _kind(node: fx.Node, modules: Mapping[str, nn.Module], data: set[fx.Node]) -> str:
    if node.op == "call_module":
        layer = modules[node.target]
        if type(layer) in KINKS and _nodes((node.args, node.kwargs), data) != [first(node)]:
            return "unknown"
        by_the_batch = isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        return "smooth" if by_the_batch else MODULES.get(type(layer), "unknown")
    given = _nodes((node.args, node.kwargs), data)
    if _draws_or_writes(node):
        return "unknown"
    if not given or (node not in data and node.target not in COMPARISONS):
        return "linear"  # it is constant
    kind, may_be_data, otherwise = TABLE.get(node.target, ("unknown", "all", "unknown"))
    fits = {"all": True, "one": len(given) == 1, "the first": given == [first(node)]}[may_be_data]
    condition = _CONDITIONS.get(node.target)
    fits = fits and (condition is None or condition(node, modules, data))
    rounds = any(isinstance(a, torch.dtype) and not a.is_floating_point for a in tree_leaves(node.kwargs))
    return "unknown" if rounds else kind if fits else otherwise


def writes(node: fx.Node) -> bool:
    """Whether a call works in place, as x += y does or, by its name, a function or method."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    of_python = getattr(node.target, "__module__", None) == "_operator"  # which has and_ and or_
    return node.target in IN_PLACE or (name.endswith("_") and not of_python and node.target not in KINKS)


def _draws_or_writes(node: fx.Node) -> bool:
    """Whether a call draws random numbers, as in training, or writes where others look on."""
    drawn = node.target in _RANDOM or bool(node.kwargs.get("training", False))
    return drawn or (writes(node) and node.target not in TABLE) or node.kwargs.get("out") is not None


def _floats(argument, modules: Mapping[str, nn.Module], data: set[fx.Node]) -> bool:
    """Whether a cast to this argument leaves the numbers as they are."""
    if not isinstance(argument, fx.Node):
        return not isinstance(argument, torch.dtype) or argument.is_floating_point
    if argument.op == "get_attr":
        constant = argument.meta.get("constant")
        return (attrgetter(argument.target)(modules[""]) if constant is None else constant).is_floating_point()
    if argument.target is getattr:
        return argument.args[1] == "device" or _floats(argument.args[0], modules, data)
    return argument in data


def _keeps_numbers(node: fx.Node, modules: Mapping[str, nn.Module], data: set[fx.Node]) -> bool:
    return all(_floats(kind, modules, data) for kind in (*node.args[1:], *node.kwargs.values()))


def _takes_numbers(node: fx.Node, modules: Mapping[str, nn.Module], data: set[fx.Node]) -> bool:
    """Whether what is taken from a value are its own numbers, not the places of the largest."""
    whole, item = node.args
    if node.target is getattr:
        return item in ("T", "mT", "values")
    if any(_compares(index, data) for index in node.all_input_nodes):
        return False
    if whole.op == "call_module":
        with_places = getattr(modules[whole.target], "return_indices", False)
    else:
        with_places = whole.target in _WITH_PLACES and _other(whole) not in data
    return item == 0 or not with_places


def _compares(node: fx.Node, data: set[fx.Node]) -> bool:
    """Whether a value that is no data hangs on a comparison of data: of such an index not even the size is known."""
    compared = node.target in COMPARISONS and bool(_nodes(node.args, data))
    return node not in data and (compared or any(_compares(given, data) for given in node.all_input_nodes))


def _other(node: fx.Node):
    """The second of two tensors, of which a call takes the larger or smaller numbers."""
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    return other if isinstance(other, fx.Node) else None


def _chooses(node: fx.Node, data: set[fx.Node]) -> bool:
    """Whether torch.where or the method takes numbers of two tensors, and by no data."""
    return len(node.args) == 3 and node.args[1 if node.op == "call_method" else 0] not in data


_CONDITIONS: dict[Callable | str, Callable[[fx.Node, Mapping[str, nn.Module], set[fx.Node]], bool]] = {
    **dict.fromkeys((getattr, operator.getitem), _takes_numbers),
    **dict.fromkeys(("to", "type_as"), _keeps_numbers),
    "type": lambda node, *_: all(isinstance(a, torch.dtype) and a.is_floating_point for a in node.args[1:]),
    **dict.fromkeys(RATIOS, lambda node, *_: node.kwargs.get("rounding_mode") is None),
    **dict.fromkeys(_EXTREMES, lambda node, *_: len(node.args) + len(node.kwargs) > 1),
    **dict.fromkeys(named("where"), lambda node, _, data: _chooses(node, data)),
}
