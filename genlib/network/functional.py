"""A module as a pure function of its parameters, alone or in a stack."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

from genlib.network.calls import plainly_called
from genlib.network.errors import first_line, out_of_memory
from genlib.network.operations import Layer, dense_steps, layers_of, traced

__all__ = [
    "Network",
    "Params",
    "aliases",
    "called",
    "copied",
    "layout",
    "over_models",
    "pulled_back",
    "require_one_shape",
    "without_hooks",
    "without_recomputation",
]

Params = dict[str, Tensor]
_RECOMPUTES = "network: it computes activations again in the backward pass (checkpoint); turn that off, then measure it"
_OF_MODULES = vars(nn.Module()).keys()
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Network:
    """A module as a pure function f(params, inputs), or a stack of same-shaped ones with a leading model axis.

    `params` and `buffers` are the tensors of the module itself (copies in a stack), detached. `graph` is None where
    torch.fx can't trace the module: measures that need outputs alone still work. `size` is None for one network.
    `passed` holds the checks that it has passed, which it shares with what is made of it; the first of them, the door
    (`network/door.py`), also finds whether it writes into its inputs, and where it has no graph which modules `ran`.
    """

    module: nn.Module
    params: Params
    buffers: Params
    graph: fx.Graph | None
    layers: tuple[Layer, ...]
    size: int | None = None
    passed: set[str] = field(default_factory=set, compare=False)
    writes_inputs: bool = False
    ran: tuple[str, ...] | None = None

    @classmethod
    def of(cls, module: "nn.Module | Network", name: str = "network") -> "Network":
        """The network of one module. A Network passes through; `name` is that of the argument, for a refusal."""
        if isinstance(module, Network):
            return module
        if not isinstance(module, nn.Module):
            raise ValueError(f"{name} is a {type(module).__name__}; give the torch.nn.Module itself")
        module = _bare(module, {})
        _require_weights(module)
        params, buffers = _weights_apart(dict(module.named_parameters()), dict(module.named_buffers()))
        graph = traced(module)
        return cls(module, params, buffers, graph, layers_of(module, graph))

    @classmethod
    def stack(cls, modules: "Sequence[nn.Module] | Network") -> "Network":
        """The networks of same-shaped modules as one, with a leading model axis on every parameter and buffer."""
        if isinstance(modules, Network):
            return modules
        modules = [_bare(module, {}) for module in modules]
        for module in modules:
            _require_weights(module)
        require_one_shape(modules)
        _require_equal_attributes(modules)
        params, buffers = _weights_apart(*stack_module_state(modules))
        skeleton = copied(modules[0])
        graph = traced(skeleton)
        return cls(skeleton, params, buffers, graph, layers_of(skeleton, graph), size=len(modules))

    @property
    def each(self) -> "list[Network]":
        """The networks of a stack one by one, without a copy; of one network itself alone."""
        if self.size is None:
            return [self]
        tensors = [
            tuple({name: tensor[i] for name, tensor in stacked.items()} for stacked in (self.params, self.buffers))
            for i in range(self.size)
        ]
        return [replace(self, params=params, buffers=buffers, size=None) for params, buffers in tensors]

    def shared_copy(self, *, requires_grad: bool = False) -> nn.Module:
        """A module of its own, for hooks that the network's must not see, that holds these very tensors."""
        params = {name: nn.Parameter(p, requires_grad) for name, p in self.params.items()}
        originals = dict(self.module.named_buffers()) | dict(self.module.named_parameters())
        lent = self.buffers | params
        module = copied(self.module, {id(tensor): lent[name] for name, tensor in originals.items()})
        if self.writes_inputs:
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.clone() for x in inputs))
        return module

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return aliases(self.module)

    @functools.cached_property
    def _dense_steps(self) -> list[tuple[str, nn.Module]] | None:
        return dense_steps(self.module)

    @property
    def piecewise_linear(self) -> bool:
        """Whether every operation is known to be linear or piecewise linear in its input."""
        return self.graph is not None and all(layer.kind in ("linear", "piecewise linear") for layer in self.layers)

    def apply(
        self,
        params: Params,
        inputs: Tensor,
        *,
        buffers: Params | None = None,
        inputs_of_each: bool = False,
    ) -> Float[Tensor, "..."]:
        """Logits [samples, classes] for these parameters; [models, samples, classes] for a stack.

        A stack shares `inputs` [samples, …], or with `inputs_of_each` each network has its own [models, samples, …].
        Cost: one forward pass.
        """
        buffers = self.buffers if buffers is None else buffers
        inputs = inputs.clone() if self.writes_inputs else inputs
        if self.size is None:
            return called(self.module, self._names, params | buffers, inputs)
        if self._dense_steps is not None:
            return _dense_stack(self._dense_steps, params, inputs, inputs_of_each)
        call = vmap(
            lambda p, b, x: called(self.module, self._names, p | b, x),
            in_dims=(0, 0, 0 if inputs_of_each else None),
            randomness="different",
        )
        return call(params, buffers, inputs)

    def require_eval(self, argument: str = "network") -> None:
        """Refuse BatchNorm and dropout in training mode: one's output depends on the batch, the other's on chance."""
        for name, module in self.module.named_modules():
            if module.training and isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
                kind = "dropout" if isinstance(module, nn.modules.dropout._DropoutNd) else "BatchNorm"
                raise ValueError(f"{argument}: {name} is {kind} in training mode; call module.eval() before measuring")

    def require_known(self) -> None:
        """Refuse a network with an operation that the table of operations doesn't hold, by name."""
        if self.graph is None:
            raise ValueError("network: torch.fx can't trace this module; this measure needs to know its operations")
        if unknown := [layer.name for layer in self.layers if layer.kind == "unknown"]:
            raise ValueError(
                f"network: the operations {', '.join(unknown)} are unknown; this measure needs to know them"
            )


def copied(module: nn.Module, memo: dict[int, Tensor] | None = None) -> nn.Module:
    """A deep copy; `memo` gives tensors by their id what stands for them there.

    What a hook computed last, as pruning keeps a weight, is an attribute with a graph, which torch won't copy.
    ValueError: a module with an attribute that can't be copied.
    """
    own = [v for part in module.modules() for name, v in vars(part).items() if name not in _OF_MODULES]
    computed = [t for t in tree_leaves(own) if isinstance(t, Tensor) and t.grad_fn]
    try:
        return copy.deepcopy(module, {id(t): t.detach().clone() for t in computed} | (memo or {}))
    except Exception as error:  # whatever an attribute of the module's own raises
        if out_of_memory(error):
            raise
        raise ValueError(
            f"network: it can't be copied ({type(error).__name__}: {first_line(error)}); hold what can't be, as files, "
            "locks and generators, outside of the module"
        ) from error


def _bare(module: nn.Module, met: dict[int, nn.Module]) -> nn.Module:
    """The module behind what compiles it or spreads it over devices, with the same tensors; its parts too."""
    while isinstance(module, _PARALLEL) or "_orig_mod" in module._modules:
        module = module._orig_mod if "_orig_mod" in module._modules else module.module
    wrapped = (isinstance(m, _PARALLEL) or "_orig_mod" in m._modules or m._compiled_call_impl for m in module.modules())
    if not any(wrapped):
        return module
    if id(module) not in met:
        met[id(module)] = bare = copy.copy(module)  # which leaves out what was compiled
        bare._modules = {n: None if p is None else _bare(p, met) for n, p in module._modules.items()}
    return met[id(module)]


def _require_weights(module: nn.Module) -> None:
    """Refuse parameters that have no values yet, or complex ones, by name."""
    for name, p in module.named_parameters():
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
            raise ValueError(f"network: {name} has no shape yet; pass a batch through the module once, then measure it")
        if p.is_complex():
            raise ValueError(
                f"network: {name} is complex; hold its real and imaginary parts as the parameter "
                "(torch.view_as_real), and join them in forward (torch.view_as_complex)"
            )


def _weights_apart(params: Params, buffers: Params) -> tuple[Params, Params]:
    """Detached, what can be moved, and what stays: the buffers, and parameters of whole numbers."""
    with torch.inference_mode(False):
        kept = {name: t.detach().clone() if t.is_inference() else t.detach() for name, t in (buffers | params).items()}
    weights = {name: kept[name] for name, p in params.items() if p.is_floating_point()}
    _require_finite(weights)
    return weights, {name: t for name, t in kept.items() if name not in weights}


def aliases(module: nn.Module) -> dict[str, str]:
    """Every name under which a parameter or buffer is to be found, and the one that `named_parameters` gives it."""
    own = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{prefix}.{name}".lstrip("."): own[id(tensor)]
        for prefix, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


def called(module: nn.Module, names: dict[str, str], tensors: Params, inputs: Tensor) -> Tensor:
    """The module's output with these tensors in place of its own; `names` are its `aliases`.

    Left to itself torch.func also ties the names of a layer that stands there twice, and puts its weights back wrong.
    """
    lent = {alias: tensors[name] for alias, name in names.items() if name in tensors}
    found = functional_call(module, lent, (inputs,), tie_weights=False)
    if isinstance(found, Tensor) and not found.is_floating_point():
        raise ValueError(f"network: its output is of {found.dtype}; let it return logits, before argmax or rounding")
    if not isinstance(found, Tensor):
        raise ValueError(
            f"network: its output is a {type(found).__name__}; wrap it in a module that returns the logits alone"
        )
    return found


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Refuse checkpointing: what it computes again in the backward pass it computes from the module's own weights."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_RECOMPUTES):
            yield
    except RuntimeError as error:
        if _RECOMPUTES not in str(error):
            raise
        raise ValueError(_RECOMPUTES) from error


def pulled_back(
    output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, *, keep: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of Σ output · cotangent in the inputs; what torch says where there are none: ValueError."""
    try:
        return torch.autograd.grad(output, inputs, cotangent, retain_graph=keep, materialize_grads=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"network: torch can't differentiate its output ({first_line(error)}); take what has a backward "
            "pass of its own, as reentrant checkpointing, out of its forward pass"
        ) from error


def require_one_shape(modules: Sequence[nn.Module]) -> None:
    """Refuse modules that can't be stacked: none at all, or one that differs from the first in a layer or a shape."""
    if not modules:
        raise ValueError("modules is empty; a stack needs at least one network")
    first = layout(modules[0], modules[0].state_dict())
    for i, module in enumerate(modules):
        if (shapes := layout(module, module.state_dict())) != first:
            odd = next(name for name in {**first, **shapes} if first.get(name) != shapes.get(name))
            raise ValueError(
                f"modules[{i}] differs from modules[0] in {odd} ({shapes.get(odd)} against {first.get(odd)}); "
                "a stack holds networks of one shape: stack each shape by itself"
            )


def without_hooks(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's forward pass; of a plain Sequential the layers' own, one after the other.

    For a few small layers torch's search for hooks takes a tenth of the time; where there are any, they run.
    """
    if type(module) is not nn.Sequential or not plainly_called(module):
        return module
    forwards = [layer.forward for layer in module]

    def forward(x: Tensor) -> Tensor:
        for layer in forwards:
            x = layer(x)
        return x

    return forward


def over_models(values: Tensor, like: Tensor) -> Tensor:
    """One value a model, to be broadcast over a tensor of the stack; a single value as it is."""
    return values.view(-1, *[1] * (like.dim() - 1)) if values.dim() else values


def _require_finite(params: Params) -> None:
    if not params:
        return
    finite = torch.stack([p.isfinite().all() for p in params.values()]).tolist()  # the one host read
    if bad := [name for name, good in zip(params, finite, strict=True) if not good]:
        raise ValueError(f"network: the weights of {', '.join(bad)} are not finite; measure it before it diverged")


def layout(module: nn.Module, tensors: Params) -> dict[str, tuple[int, ...] | str]:
    """What networks must share to be handled as one: the module's layers, and the shapes of its tensors."""
    kinds = {f"the module {name!r}": str(m) for name, m in module.named_modules() if not list(m.children())}
    return kinds | {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _require_equal_attributes(modules: Sequence[nn.Module]) -> None:
    """Refuse networks that differ in more than tensors: a stack would run all of them as the first."""
    first = _attributes(modules[0])
    for i, module in enumerate(modules):
        if (others := _attributes(module)) != first:
            odd = next(name for name in {**first, **others} if first.get(name) != others.get(name))
            raise ValueError(
                f"modules[{i}] differs from modules[0] in {odd}, an attribute that is no parameter or buffer; a stack "
                "would take that of the first for all: make it a buffer, or measure each network alone"
            )


def _attributes(module: nn.Module) -> dict[str, str]:
    """What a module holds beside tensors and modules, but for what a hook computes anew."""
    return {
        f"{prefix}.{name}".lstrip("."): _described(value)
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in _OF_MODULES and not (isinstance(value, Tensor) and part._forward_pre_hooks)
    }


def _described(value: object) -> str:
    """An attribute in words that are the same for the same value; of what has no such words its type alone."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{value.tolist()}" if value.numel() <= 2**16 else f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, str | bytes | int | float | complex | torch.dtype | torch.device | torch.Size | None):
        return repr(value)
    if isinstance(value, tuple | list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return f"{type(value).__name__}{[(key, _described(one)) for key, one in items]}"
    if (code := getattr(value, "__code__", None)) is not None:  # a function, and what it holds on to
        held = [_described(cell.cell_contents) for cell in value.__closure__ or () if not _is_module(cell)]
        return f"{code}{held}{_described(value.__defaults__)}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_module(cell) -> bool:
    return isinstance(cell.cell_contents, nn.Module)


def _dense_stack(steps: list[tuple[str, nn.Module]], params: Params, inputs: Tensor, inputs_of_each: bool) -> Tensor:
    # Batched products by hand: vmap takes 1.4 times as long for the same ones on small networks. Samples come last, so
    # that the gradients of the weights come out laid out as the weights are.
    models = next(iter(params.values())).shape[0]
    x = inputs if inputs_of_each else inputs.expand(models, *inputs.shape)
    x = x.flatten(2).transpose(1, 2)
    for name, layer in steps:
        if not isinstance(layer, nn.Linear):
            x = layer(x)
        elif layer.bias is None:
            x = params[f"{name}.weight"] @ x
        else:
            x = torch.baddbmm(params[f"{name}.bias"].unsqueeze(2), params[f"{name}.weight"], x)
    return x.transpose(1, 2)
