"""What a traced network does: its graph, and the operations in it."""

import builtins
import dis
import inspect
import operator
import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.nn.functional as F
from torch import fx, nn

from genlib.network.calls import altered, in_sequence
from genlib.network.kinds import (
    COMPARISONS,
    IN_PLACE,
    KINKS,
    MODULES,
    TABLE,
    VIEWS,
    asks,
    data_nodes,
    first,
    kinds_of,
    named,
    views,
    writes,
)
from genlib.network.outputs import entry_of_logits

__all__ = ["ELEMENTWISE", "Layer", "Rerun", "changes_nothing", "dense_steps", "layers_of", "row", "traced"]

_LEN = len


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network: its name in the module, the operation, and its kind.

    Of a registered activation the operation is the class, not the module: it isn't known whether torch's vmap follows.
    `kind` is `linear`, `piecewise linear`, `smooth` or `unknown`.
    """

    name: str
    operation: nn.Module | Callable | str
    kind: str


def _parts(node: fx.Node) -> int | None:
    """Of how many parts a value is made, if that is written there: of chunks, or of the first sizes of a shape."""
    part = node.args[1] if len(node.args) > 1 else None
    if node.target in named("chunk", "tensor_split") and isinstance(part, int):
        return part
    if node.target in named("split") and isinstance(part, list | tuple):
        return len(part)
    of_a_shape = node.target is operator.getitem and isinstance(node.args[0], fx.Node) and asks(node.args[0])
    begins = of_a_shape and isinstance(part, slice) and not part.start and isinstance(part.stop, int)
    return part.stop if begins and part.stop > 0 else None


class _Proxy(fx.Proxy):
    """One that tells x += y from x + y, and takes assertions to hold: where one doesn't, the module itself fails.

    The tracer's own way, trace_asserts, knows byte code up to that of Python 3.10, and one condition an assertion.
    """

    def __len__(self) -> int:
        if (count := _parts(self.node)) is None:
            raise TypeError("the length of a proxy is unknown")
        return count


def _passing(frame: FrameType) -> bool | None:
    """Which outcome of the condition that is looked at in a frame passes an assertion, if one looks at it."""
    code = [step for step in dis.get_instructions(frame.f_code) if step.opname != "NOT_TAKEN"]
    here = next(place for place, step in enumerate(code) if step.offset >= frame.f_lasti)
    here += code[here].opname in ("TO_BOOL", "COMPARE_OP", "CONTAINS_OP")
    if not code[here].opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps = code[here].opname.endswith("IF_TRUE")
    ends = {jumps: code[here].argval, not jumps: code[here + 1].offset}
    raises = {step.offset for step in code if "AssertionError" in step.argrepr or "ASSERTION_ERROR" in step.opname}
    return next((outcome for outcome in ends if ends[not outcome] in raises), None)


def _recorded(function: Callable) -> Callable:
    """The function, whose call on a proxy is a call in the graph."""

    def call(*args, **kwargs):
        proxy = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _truth(proxy: fx.Proxy, frame: FrameType) -> bool:
    passes = _passing(frame)
    return fx.Proxy.__bool__(proxy) if passes is None else passes


_Proxy.__bool__ = lambda proxy: _truth(proxy, sys._getframe(1))  # no method, around which a decorator puts a frame
for _operation in IN_PLACE:
    setattr(_Proxy, f"__{_operation.__name__}__", _recorded(_operation))


class _Length(_Proxy):
    """A length, or a comparison with one, that isn't added to a number: a forward that counts would keep a proxy."""

    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = None


class _Tracer(fx.Tracer):
    """One that doesn't look into the modules of the table either, besides torch's own, and gives the inputs alone."""

    leaves: Container[str] = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_qualified_name in self.leaves or MODULES.get(type(m)) == "smooth" or type(m) in KINKS
        return known or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        compared = node.target in (*COMPARISONS, operator.eq, operator.ne)
        if node.target is _LEN or (compared and any("length" in given.meta for given in node.all_input_nodes)):
            node.meta["length"] = True
            return _Length(node, self)
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        count = _parts(obj.node)
        return super().iter(obj) if count is None else (obj[i] for i in range(count))

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args=None) -> tuple[Callable, list]:
        # A forward's other arguments keep their defaults, as in a call: a proxy for mask=None would not be None.
        return root_fn, [self.root, self.create_proxy("placeholder", "inputs", (), {})]


def traced(module: nn.Module, leaves: Container[str] = (), *, follow_buffers: bool = False) -> fx.Graph | None:
    """What the module's forward does to get its logits, or None where torch.fx can't follow it.

    Its buffers are left as they were.

    The modules named in `leaves` are calls of their own, not looked into. Arithmetic on buffers alone is done here and
    now and its result stands in the graph, unless `follow_buffers`.
    """
    if altered(module):  # which torch.fx doesn't see
        return None
    if (names := row(module, leaves)) is not None:
        return _one_after_the_other(names)
    kept = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers() if not buffer.is_inference()]
    attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
    tracer = _Tracer()
    tracer.leaves, tracer.proxy_buffer_attributes = leaves, follow_buffers
    try:
        with torch.random.fork_rng(devices=[]), _calls_recorded(module):
            graph = tracer.trace(module)
        _drop_unused(graph)
        _write_anew(graph, module)
        return _plain(graph, module)
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


def row(module: nn.Module, leaves: Container[str] = ()) -> list[str] | None:
    """The names of the layers of a Sequential that runs each once and of which none is looked into, else None."""
    tracer = _Tracer()
    tracer.leaves = leaves
    each_once = type(module) is nn.Sequential and len([*module.children()]) == len(module)
    alone = each_once and all(tracer.is_leaf_module(layer, name) for name, layer in module.named_children())
    return list(module._modules) if alone else None


def _one_after_the_other(names: list[str]) -> fx.Graph:
    """What tracing finds of layers in a row, which takes it longer than their gradient."""
    graph = fx.Graph()
    x = graph.placeholder("inputs")
    for name in names:
        x = graph.call_module(name, (x,))
    graph.output(x)
    return graph


@contextmanager
def _calls_recorded(module: nn.Module) -> Iterator[None]:
    """In here len(x) of a proxy, of which Python takes nothing but a number, and registered functions are calls.

    The tracer's own way, autowrap_functions, sees no name that begins with an underscore, no attribute of a module and
    no builtin, and takes len([x, y]) for a call.
    """
    functions = [function for function in (_LEN, *KINKS) if inspect.isroutine(function)]
    recorded = {id(function): _recorded(function) for function in functions}
    forwards = [inspect.unwrap(getattr(type(part), "forward", None)) for part in module.modules()]
    homes = [vars(part) for part in module.modules()]
    homes += [vars(builtins), *(getattr(f, "__globals__", {}) for f in (*forwards, *functions))]
    homes = {id(home): home for home in homes}.values()
    found = [(home, name, value) for home in homes for name, value in home.items() if id(value) in recorded]
    for home, name, value in found:
        home[name] = recorded[id(value)]
    try:
        yield
    finally:
        for home, name, value in found:
            home[name] = value


def _drop_unused(graph: fx.Graph) -> None:
    """Take out calls of torch's functions whose value nobody takes up: places of a maximum, shapes, assertions."""
    for node in reversed(graph.nodes):
        if node.users or node.op not in ("call_function", "call_method") or _written(node) or "out" in node.kwargs:
            continue
        home = (getattr(node.target, "__module__", None) or "").split(".")[0]
        if hasattr(torch, node.target) if node.op == "call_method" else home in ("torch", "_operator"):
            graph.erase_node(node)


def _written(node: fx.Node) -> bool:
    """Whether a function or method works in place."""
    return writes(node) or bool(node.kwargs.get("inplace", False))


def _write_anew(graph: fx.Graph, module: nn.Module) -> None:
    """Let x += y and x.add_(y) be x + y and x.add(y) where nothing else that shares the memory of x is used again.

    What uses the tensor x itself later uses what was made of it. What others see stays as it is, of unknown kind, since
    who runs the graph on values other than the module's, as path norms do, has nothing to write into.
    """
    data, place = data_nodes(graph), {node: i for i, node in enumerate(graph.nodes)}
    modules = dict(module.named_modules())
    owner: dict[fx.Node, fx.Node | str] = {}
    sharing: dict[fx.Node | str, list[fx.Node]] = defaultdict(list)

    def used_later(values: list[fx.Node], node: fx.Node) -> bool:
        return any(place[user] > place[node] and not asks(user) for value in values for user in value.users)

    for node in graph.nodes:
        layer = modules[node.target] if node.op == "call_module" else None
        written = getattr(layer, "inplace", False) if layer else node.op.startswith("call") and _written(node)
        x = first(node) if isinstance(first(node), fx.Node) else None
        if written and x is not None:
            several = isinstance((*node.args, None, None)[1], tuple | list)
            if x in data and not several:
                x.replace_all_uses_with(node, lambda user, node=node: place[user] > place[node])
            shared = used_later(sharing[owner[x]], node) or isinstance(owner[x], str)
            if not shared and layer is None:
                node.target = _out_of_place(node.target)
        fresh = x is None or not (written or views(node, layer))
        owner[node] = node.target if node.op == "get_attr" else node if fresh else owner[x]
        sharing[owner[node]].append(node)


def _out_of_place(operation: Callable | str) -> Callable | str:
    """The operation of the table that returns what this one writes, or this one."""
    if operation in IN_PLACE:
        return IN_PLACE[operation]
    if isinstance(operation, str):
        plain = operation.removesuffix("_")
    else:
        name = getattr(operation, "__name__", "").removesuffix("_")
        plain = getattr(F, name, None) or getattr(torch, name, operation)
    return plain if plain in TABLE and plain not in VIEWS else operation


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
    """The graph of the logits alone, and in its `meta` the tensors that fx keeps in the module."""
    _to_logits(graph)
    for node in graph.nodes:
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
    modules = {name: type(part) if type(part) in KINKS else part for name, part in module.named_modules()}
    return tuple(
        Layer(str(node.target), modules[node.target], kind)
        if node.op == "call_module"
        else Layer(node.name, node.target, kind)
        for node, kind in kinds_of(module, graph).items()
    )


ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity),
)


def dense_steps(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a Sequential of dense layers, each used once, and elementwise ones alone, else None.

    Flattening, which must come first, and dropout out of training are left out.
    """
    if not in_sequence(module) or altered(module):
        return None
    layers = list(module._modules.items())  # not named_children, which leaves out a layer that it has met before
    if any(type(layer) is nn.Flatten for _, layer in layers[1:]):
        return None
    steps = [(name, layer) for name, layer in layers if not changes_nothing(layer)]
    linear = [layer.weight for _, layer in steps if type(layer) is nn.Linear]
    dense = all(type(layer) is nn.Linear or type(layer) in ELEMENTWISE for _, layer in steps)
    return steps if dense and len(set(linear)) == len(linear) else None


def changes_nothing(layer: nn.Module) -> bool:
    """Whether samples that are flat already pass a layer as they are."""
    whole = type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    return whole or (type(layer) is nn.Dropout and not layer.training)
