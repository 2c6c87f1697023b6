"""A module as a pure function of its parameters, alone or in a stack."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

from genlib.network.arguments import Arguments, parameters_of_forward
from genlib.network.calls import plainly_called
from genlib.network.errors import first_line, out_of_memory
from genlib.network.modules import (
    Params,
    aliases,
    bare,
    copied,
    layout,
    require_equal_attributes,
    require_equally_trainable,
    require_one_shape,
    require_weights,
    weights_apart,
)
from genlib.network.operations import Layer, dense_steps, layers_of, traced
from genlib.network.outputs import logits_of

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

_RECOMPUTES = "network: it computes activations again in the backward pass (checkpoint); turn that off, then measure it"


@dataclass(frozen=True)
class Network:
    """A module as a pure function f(params, inputs), or a stack of same-shaped ones with a leading model axis.

    `params` and `buffers` are the tensors of the module itself (copies in a stack), detached. `graph` is None where
    torch.fx can't trace the module: measures that need outputs alone still work. `size` is None for one network.
    `passed` holds the checks that it has passed, which it shares with what is made of it; the first of them, the door
    (`network/door.py`), also finds whether it writes into its inputs, and where it has no graph which modules `ran`.
    With `arguments` its inputs are the numbers of samples, by which it looks up what its module takes.
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
    arguments: Arguments | None = None

    @classmethod
    def of(cls, module: "nn.Module | Network", name: str = "network") -> "Network":
        """The network of one module. A Network passes through; `name` is that of the argument, for a refusal."""
        if isinstance(module, Network):
            return module
        if not isinstance(module, nn.Module):
            raise ValueError(f"{name} is a {type(module).__name__}; give the torch.nn.Module itself")
        module = bare(module, {})
        require_weights(module)
        params, buffers = weights_apart(dict(module.named_parameters()), dict(module.named_buffers()))
        graph = traced(module)
        return cls(module, params, buffers, graph, layers_of(module, graph))

    @classmethod
    def stack(cls, modules: "Sequence[nn.Module] | Network") -> "Network":
        """The networks of same-shaped modules as one, with a leading model axis on every parameter and buffer."""
        if isinstance(modules, Network):
            return modules
        modules = [bare(module, {}) for module in modules]
        for module in modules:
            require_weights(module)
        require_one_shape(modules)
        require_equally_trainable(modules)
        require_equal_attributes(modules)
        params, buffers = weights_apart(*stack_module_state(modules))
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

    def taking(self, arguments: Arguments | None) -> "Network":
        """The same, which takes the numbers of samples where there are arguments; torch.fx doesn't follow that."""
        if arguments is None:
            return self
        return replace(self, arguments=arguments, graph=None, layers=(), ran=None, passed=set())

    def moving(self, names: Iterable[str]) -> "Network":
        """The same as a function of these tensors, parameters and buffers as they were, all others being constants."""
        if list(names) == list(self.params):
            return self
        tensors = self.params | self.buffers
        params = {name: tensors[name] for name in names}
        buffers = {name: tensor for name, tensor in tensors.items() if name not in params}
        return replace(self, params=params, buffers=buffers, passed=self.passed & {"door"})

    @property
    def trainable(self) -> "Network":
        """The same as a function of the parameters that require a gradient."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        if not names:
            raise ValueError("network: none of its parameters requires a gradient, and trainable_only leaves these")
        return self.moving(names)

    def shared_copy(self, *, requires_grad: bool = False) -> nn.Module:
        """A module of its own, for hooks that the network's must not see, that holds these very tensors."""
        params = {name: nn.Parameter(p, requires_grad) for name, p in self.params.items()}
        originals = dict(self.module.named_buffers()) | dict(self.module.named_parameters())
        lent = self.buffers | params
        module = copied(self.module, {id(tensor): lent[name] for name, tensor in originals.items()})
        if self.arguments is not None:
            module.register_forward_pre_hook(
                lambda _, args, kwargs: self.arguments.of(*args, self.params), with_kwargs=True
            )
        elif self.writes_inputs:
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.clone() for x in inputs))
        return module

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return aliases(self.module)

    @functools.cached_property
    def _dense_steps(self) -> list[tuple[str, nn.Module]] | None:
        return dense_steps(self.module)

    @property
    def untraced(self) -> str:
        """Why it has no graph."""
        return "torch.fx can't trace this module" if self.arguments is None else "it takes several inputs"

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
        inputs = inputs.to(next((w.device for w in params.values()), inputs.device))
        inputs = inputs.clone() if self.writes_inputs else inputs
        if self.size is None:
            return called(self.module, self._names, params | buffers, inputs, self.arguments)
        if self._dense_steps is not None:
            return _dense_stack(self._dense_steps, params | buffers, inputs, inputs_of_each)
        call = vmap(
            lambda p, b, x: called(self.module, self._names, p | b, x, self.arguments),
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
            raise ValueError(f"network: {self.untraced}; this measure needs to know its operations")
        if unknown := [layer.name for layer in self.layers if layer.kind == "unknown"]:
            raise ValueError(
                f"network: the operations {', '.join(unknown)} are unknown; this measure needs to know them: "
                "network.register_activation says what an activation of one's own is"
            )


def called(
    module: nn.Module, names: dict[str, str], tensors: Params, inputs: Tensor, arguments: Arguments | None = None
) -> Tensor:
    """The module's logits with these tensors in place of its own; `names` are its `aliases`.

    Left to itself torch.func also ties the names of a layer that stands there twice, and puts its weights back wrong.
    """
    lent = {alias: tensors[name] for alias, name in names.items() if name in tensors}
    args, kwargs = ((inputs,), {}) if arguments is None else arguments.of(inputs, tensors)
    try:
        found = functional_call(module, lent, args, kwargs, tie_weights=False)
    except Exception as error:  # whatever the module's own forward raises
        if out_of_memory(error) or str(error).startswith("network: "):
            raise
        raise _failed(module, tree_leaves((args, kwargs)), error) from error
    return logits_of(found, len(inputs))


def _failed(module: nn.Module, given: list[Tensor], error: Exception) -> ValueError:
    """What the module's forward raised on these inputs, and what to give it."""
    mend = "give inputs that the network takes in batches of any size"
    if isinstance(error, TypeError):
        takes = ", ".join(p.name for p in parameters_of_forward(module))
        mend = f"give inputs as forward takes them, {takes}, several as ((first, second), labels) or by name in a dict"
    elif not given[0].is_floating_point() and not given[1:]:
        mend += f", as inputs.float(){' / 255' if given[0].dtype is torch.uint8 else ''} where it asks for floats"
    shapes = ", ".join(f"{tuple(x.shape)} and {x.dtype}" for x in given[:4])
    return ValueError(
        f"network: its forward pass fails on inputs of shape {shapes} "
        f"({type(error).__name__}: {first_line(error)}); {mend}"
    )


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
    output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor | None = None, *, keep: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of Σ output · cotangent, or Σ output, in the inputs; what torch says where there are none:
    ValueError. The first cotangent of a process makes torch import sympy, a third of a second."""
    try:
        with torch.enable_grad():
            output = output.sum() if cotangent is None else output
        return torch.autograd.grad(output, inputs, cotangent, retain_graph=keep, materialize_grads=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"network: torch can't differentiate its output ({first_line(error)}); take what has a backward "
            "pass of its own, as reentrant checkpointing, out of its forward pass"
        ) from error


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
