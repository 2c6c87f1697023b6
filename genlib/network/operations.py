"""The table of operations: what a traced network does, and which of it is linear, piecewise linear or smooth."""

import operator
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from genlib.network.normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm
from genlib.network.outputs import entry_of_logits

__all__ = ["ELEMENTWISE", "Layer", "Rerun", "altered", "dense_steps", "layers_of", "traced"]

_POOLING = ("AvgPool", "AdaptiveAvgPool")
_LINEAR = {
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(getattr(nn, f"{kind}{d}d") for kind in _POOLING for d in (1, 2, 3)),
    *(torch.flatten, torch.cat, torch.add, torch.mean, torch.squeeze),
    *(operator.add, operator.iadd, operator.sub, operator.getitem),
    *(F.linear, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.pad),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"),
    *("mean", "sum", "size"),
}
_PIECEWISE_LINEAR = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardsigmoid, torch.relu, torch.abs),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, "relu", "relu_", "clamp", "abs"),
}
_IN_PLACE = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")}
_SMOOTH = {
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Mish, nn.Softmax, nn.LogSoftmax),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(SimplifiedBatchNorm, SimplifiedLayerNorm),
    *(torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.softplus, F.gelu, F.silu, F.softmax, F.layer_norm),
    *(torch.mul, torch.div, operator.mul, operator.truediv, "tanh", "sigmoid", "softmax"),
}


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network: its name in the module, the operation, and its kind.

    `kind` is `linear`, `piecewise linear`, `smooth` or `unknown`.
    """

    name: str
    operation: nn.Module | Callable | str
    kind: str


class _Proxy(fx.Proxy):
    """One that tells x += y from x + y."""


def _in_place(operation: Callable) -> Callable:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", operation, (proxy, other), {})


for _operation in _IN_PLACE:
    setattr(_Proxy, f"__{_operation.__name__}__", _in_place(_operation))


class _Tracer(fx.Tracer):
    """One that doesn't look into the modules of the table either, besides torch's own, and gives the inputs alone."""

    leaves: Container[str] = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_qualified_name in self.leaves or type(m) in _SMOOTH
        return known or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args=None) -> tuple[Callable, list]:
        # A forward's other arguments keep their defaults, as in a call: a proxy for mask=None would not be None.
        return root_fn, [self.root, self.create_proxy("placeholder", "inputs", (), {})]


def altered(module: nn.Module) -> str | None:
    """What makes the module do other than its type says: a hook, or a forward of its own, with its name."""
    for name, part in module.named_modules():
        where = name or "the module itself"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{where} has a forward hook"
        if "forward" in vars(part):
            return f"{where} has been given another forward"
        if type(part).__call__ is not nn.Module.__call__:
            return f"{where} has a __call__ of its own"
    return "every module has a global forward hook" if _global_forward_hooks or _global_forward_pre_hooks else None


def traced(
    module: nn.Module, leaves: Container[str] = (), *, follow_buffers: bool = False, overwritten: bool = False
) -> fx.Graph | None:
    """What the module's forward does to get its logits, or None where torch.fx can't follow it.

    Its buffers are left as they were.

    The modules named in `leaves` are calls of their own, not looked into. Arithmetic on buffers alone is done here and
    now and its result stands in the graph, unless `follow_buffers`. With `overwritten` also where something that is
    used again is worked on in place: of such a graph the calls are right, the values aren't.
    """
    if altered(module):  # which torch.fx doesn't see
        return None
    kept = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers() if not buffer.is_inference()]
    attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
    tracer = _Tracer()
    tracer.leaves, tracer.proxy_buffer_attributes = leaves, follow_buffers
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(module)
        return None if _overwrites(graph, module) and not overwritten else _plain(graph, module)
    except Exception:  # fx raises whatever the module's own forward raises when it is fed proxies
        return None
    finally:
        for now, before in attributes:  # a forward may keep a proxy, and fx the constants that it met
            now.clear()
            now.update(before)
        with torch.no_grad():
            for buffer, version, value in kept:
                if buffer._version != version:
                    buffer.copy_(value)


def _overwrites(graph: fx.Graph, module: nn.Module) -> bool:
    """Whether something is worked on in place and used again later: the graph would show it as it was before."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    modules = dict(module.named_modules())

    def in_place(node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(modules[node.target], "inplace", False)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        marked = name.endswith("_") and not name.endswith("__")
        return node.target in _IN_PLACE or marked or node.kwargs.get("inplace", False)

    return any(
        place[user] > place[node]
        for node in graph.nodes
        if node.op.startswith("call") and in_place(node) and node.args and isinstance(node.args[0], fx.Node)
        for user in node.args[0].users
    )


def _to_logits(graph: fx.Graph) -> None:
    """Let the graph give the logits alone, where the module returns more, and leave out what they don't hang on."""
    output = graph.output_node()
    returned = output.args[0]
    found = entry_of_logits(returned)
    if isinstance(found, fx.Node) and isinstance(found.target, type):  # an object that is made of the logits
        names = getattr(found.target, "__match_args__", ())
        found = (dict(zip(names, found.args, strict=False)) | found.kwargs).get("logits", found)
    if found is returned:
        return
    output.args = (found,)
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _plain(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """The graph with x + y for x += y, the same here, and in its `meta` the tensors that fx keeps in the module."""
    _to_logits(graph)
    for node in graph.nodes:
        node.target = _IN_PLACE.get(node.target, node.target)
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            node.meta["constant"] = getattr(module, node.target)
    return graph


class Rerun(fx.Interpreter):
    """Runs a graph on the tensors of a module, or of a copy of it."""

    def run_node(self, n: fx.Node):
        return n.meta["constant"] if "constant" in n.meta else super().run_node(n)


def layers_of(module: nn.Module, graph: fx.Graph | None) -> tuple[Layer, ...]:
    if graph is None:
        return ()
    modules = dict(module.named_modules())
    calls = [node for node in graph.nodes if node.op in ("call_module", "call_function", "call_method")]
    return tuple(_layer(node, modules) for node in calls)


def _layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> Layer:
    operation = modules[node.target] if node.op == "call_module" else node.target
    name = str(node.target) if node.op == "call_module" else node.name
    weights = [*node.args[1:], *node.kwargs.values()] if operation is F.linear else []
    bilinear = any(isinstance(w, fx.Node) and w.op != "get_attr" for w in weights)
    return Layer(name, operation, "smooth" if bilinear else _kind(operation))


def _kind(operation: nn.Module | Callable | str) -> str:
    if isinstance(operation, nn.modules.batchnorm._BatchNorm) and operation.training:
        return "smooth"
    key = type(operation) if isinstance(operation, nn.Module) else operation
    tables: Mapping[str, set] = {"linear": _LINEAR, "piecewise linear": _PIECEWISE_LINEAR, "smooth": _SMOOTH}
    return next((kind for kind, table in tables.items() if key in table), "unknown")


ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity),
)


def dense_steps(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a Sequential of dense layers, each used once, and elementwise ones alone, else None.

    Flattening and dropout out of training are left out.
    """
    if type(module).forward is not nn.Sequential.forward or altered(module):
        return None
    # Not named_children, which leaves out a layer that it has met before.
    steps = [(name, layer) for name, layer in module._modules.items() if not _changes_nothing(layer)]
    linear = [layer.weight for _, layer in steps if type(layer) is nn.Linear]
    dense = all(type(layer) is nn.Linear or type(layer) in ELEMENTWISE for _, layer in steps)
    return steps if dense and len(set(linear)) == len(linear) else None


def _changes_nothing(layer: nn.Module) -> bool:
    """Whether samples that are flat already pass a layer as they are."""
    whole = type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    return whole or (type(layer) is nn.Dropout and not layer.training)
