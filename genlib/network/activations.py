"""Activations of one's own: what they are said to be, and whether a few numbers bear that out."""

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from genlib.network.errors import first_line, out_of_memory
from genlib.network.functional import Network
from genlib.network.kinds import KINKS, MODULES, NONEXPANSIVE, TABLE, named
from genlib.network.operations import Rerun

__all__ = ["false_claim", "register_activation", "require_claims"]

_KINDS = ("linear", "piecewise linear", "smooth")
_NUMBERS, _BEYOND = 64, 8.0  # tried in all, at least as far as this beyond the outermost kinks
_SHAPES = ((1,), (1, 3), (1, 3, 4, 4))
_MEND = "of a piecewise linear one, and of no other, give the numbers at which it bends, each once, as (0,)"
_ALIKE = 1e-6  # of the largest number of a piece: activations may compute in float32


def register_activation(
    activation: type[nn.Module] | Callable,
    kind: str,
    *,
    kinks: Sequence[float | int] | Callable[..., Sequence[float | int]] = (),
    nonexpansive: bool = False,
) -> None:
    """Say what an elementwise activation of one's own is, so that networks with it get every row which that allows.

    `activation`: the class of a module, of which subclasses are others, or a function whose first argument is the
    tensor. A forward finds a function by a name in its own file or in the function's, or as an attribute of a module;
    of one that it finds otherwise, as in a dict, the steps are looked at.
    `kind`: `linear`, which may be affine; `piecewise linear`, which transitions and exact traces ask for; or `smooth`.
    `kinks`: of a piecewise linear one the numbers at which it bends or jumps, as (0,) or (-1, 1); or a function that
    gives them from the module, or from the function's arguments after the tensor.
    `nonexpansive`: whether φ(0) = 0 and |φ(a) - φ(b)| ≤ |a - b|, which path norms ask for.
    All of it is tried on 64 numbers in float64, up to 8 beyond the outermost kinks: here where the class needs no
    arguments, or the function none besides the tensor; and in the shape, as far as the values and with the settings of
    a network where that is first measured on data, and in path norms. Cost there: four calls of it on 64 samples.
    What is no such class or function, another kind, kinks that are missing or not to be, an activation that genlib
    knows already, a claim that isn't borne out, a gradient that isn't the slope between kinks, as of a straight-through
    step: ValueError.
    """
    of_a_class = isinstance(activation, type) and issubclass(activation, nn.Module)
    if not of_a_class and not inspect.isroutine(activation):
        kept = "its class" if isinstance(activation, nn.Module) else "a class of torch.nn.Module, or a function"
        raise ValueError(f"activation is {activation!r}; give {kept}")
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(map(repr, _KINDS))}")
    name = activation.__name__
    keys = named(name) if getattr(torch, name, None) is activation else {activation}
    table = MODULES if of_a_class else TABLE
    if any(key in table and key not in KINKS for key in keys):
        raise ValueError(f"activation is {name}, which genlib knows already; register a class or function of your own")
    if _odd(kinks, kind) and not (kind == "piecewise linear" and callable(kinks)):
        raise ValueError(f"kinks is {kinks} of a {kind} activation; {_MEND}")
    where = kinks if callable(kinks) else lambda *_, **__: kinks
    if found := _seen_without_arguments(activation, kind, where, nonexpansive):
        raise ValueError(f"activation: {name} is {found}")
    for key in keys:
        table[key] = kind if of_a_class else (kind, "the first", "unknown")
        KINKS[key] = where
        NONEXPANSIVE[key] = lambda *_, **__: nonexpansive


def false_claim(operation: nn.Module | Callable | str, *args, **kwargs) -> str | None:
    """What an operation that is registered is said to be and isn't, on numbers in the shape of what it is given."""
    if not _registered(operation):
        return None
    args, kwargs = tree_map_only(Tensor, lambda a: a.double() if a.is_floating_point() else a, (args, kwargs))
    x, *args = args or [kwargs.pop("input")]
    of_a_class = isinstance(operation, nn.Module)
    key = type(operation) if of_a_class else operation
    kind = MODULES[key] if of_a_class else TABLE[key][0]
    run = getattr(Tensor, operation) if isinstance(operation, str) else operation
    try:
        run = copy.deepcopy(run).double() if of_a_class else run
        kinks = KINKS[key](run) if of_a_class else KINKS[key](*args, **kwargs)
        return _fault(lambda x: run(x, *args, **kwargs), kind, kinks, NONEXPANSIVE[key](), x)
    except Exception as error:  # whatever a stranger's activation raises
        if out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {first_line(error)}"
        return f"registered as {kind} and elementwise, but fails on numbers of its input's shape ({said})"


class _Tried(Rerun):
    """A pass over the graph that looks at each registered activation before it runs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.faults = []

    def run_node(self, n):
        operation = self.fetch_attr(n.target) if n.op == "call_module" else n.target
        if n.op.startswith("call"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            if found := false_claim(operation, *args, **kwargs):
                self.faults.append(f"{n.target if n.op == 'call_module' else n.name} is {found}")
        return super().run_node(n)


@torch.no_grad()
def require_claims(network: Network, inputs: Tensor) -> None:
    """Refuse a registered activation that isn't what it is said to be, by name. Of a stack the first stands for all.

    Cost: a forward pass over the inputs, where there is one.
    """
    if not any(_registered(layer.operation) for layer in network.layers):
        return
    tried = _Tried(network.each[0].shared_copy(), graph=network.graph)
    with contextlib.suppress(Exception):  # whatever operations raise out of their place, where the graph is wrong
        tried.run(inputs.clone())
    if tried.faults:
        raise ValueError(f"network: {tried.faults[0]}; mend what network.register_activation says of it")


def _registered(operation: nn.Module | Callable | str) -> bool:
    return (type(operation) if isinstance(operation, nn.Module) else operation) in KINKS


def _seen_without_arguments(activation: Callable, kind: str, kinks: Callable, nonexpansive: bool) -> str | None:
    """What shows of a false claim where the class is made, and the function called, without arguments."""
    for shape in _SHAPES:
        like = torch.zeros(shape, device="cpu")
        # Where it needs arguments, or another shape, a network will give them.
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
            made = activation().double().eval() if isinstance(activation, type) else activation
            where = kinks(made) if isinstance(activation, type) else kinks()
            if found := _fault(made, kind, where, nonexpansive, like):
                return found
    return None


def _odd(kinks: object, kind: str) -> bool:
    if kind != "piecewise linear":
        return kinks != ()
    numbers = isinstance(kinks, Sequence) and all(isinstance(k, float | int) and math.isfinite(k) for k in kinks)
    return not numbers or not 0 < len({*kinks}) == len(kinks)


def _fault(
    run: Callable[[Tensor], Tensor], kind: str, kinks: Sequence[float | int], nonexpansive: bool, like: Tensor
) -> str | None:
    """How a function differs from what it is said to be: elementwise, and affine between neighbouring kinks."""
    said = f"registered as {kind}"
    if _odd(kinks, kind):
        return f"{said} with kinks {kinks}; {_MEND}"
    kinks = sorted(kinks)
    beyond = max(_BEYOND, float(like.abs().nan_to_num(0, 0).amax()))
    ends = [min(kinks, default=0.0) - beyond, *kinks, max(kinks, default=0.0) + beyond]
    ends = torch.tensor(ends, dtype=torch.float64, device=like.device)
    numbers = max(4, _NUMBERS // (len(ends) - 1))
    within = (torch.arange(numbers, device=like.device) + _drawn((numbers,), like.device)) / numbers
    within = (torch.pi / 2 * within).sin().square()  # denser at the ends
    t = ends[:-1, None] + within * ends.diff()[:, None]  # [pieces, numbers]
    x = t.view(-1, *[1] * (like.dim() - 1)).expand(-1, *like.shape[1:]).contiguous()
    y, drawn = run(x.clone()), _drawn(x.shape, x.device)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return f"{said} and elementwise, but gives {getattr(y, 'shape', type(y).__name__)} for {tuple(x.shape)}"
    if not y.isfinite().all():
        return f"{said}, but is not finite between {ends[0]:g} and {ends[-1]:g}"
    y, farther = y.double(), 3 * ends.abs().amax() * (4 * drawn - 1)  # than any of x, on either side
    apart = y - run(torch.where(drawn < 0.5, farther, x)).double()
    if not (apart[drawn >= 0.5].abs() <= _ALIKE * y.abs().amax()).all():
        return f"{said} and elementwise, but an output hangs on more than its own input, or on chance"
    zero = run(torch.zeros_like(x)).abs().amax()
    y, t = y.view(*t.shape, -1), t.unsqueeze(-1)
    close = _ALIKE * (y.abs().amax(1, keepdim=True) + t.abs().amax(1, keepdim=True))
    steps = y.flatten(0, 1).diff(dim=0).abs() - t.flatten(0, 1).diff(dim=0)
    if nonexpansive and not (zero <= _ALIKE and (steps <= close.amax()).all()):
        return f"{said} and nonexpansive, but has φ(0) other than 0, or a slope larger than 1"
    return None if kind == "smooth" else _bent_elsewhere(run, said, kinks, x, t, y, close)


def _bent_elsewhere(
    run: Callable[[Tensor], Tensor], said: str, kinks: list[float | int], x: Tensor, t: Tensor, y: Tensor, close: Tensor
) -> str | None:
    """What isn't a line between neighbouring kinks, or no other line beyond a kink; t, y are [pieces, numbers, …]."""
    slopes = (y[:, -1:] - y[:, :1]) / (t[:, -1:] - t[:, :1])
    if not ((y - y[:, :1] - slopes * (t - t[:, :1])).abs() <= close).all():
        return f"{said}, but isn't affine {f'between its kinks {kinks}' if kinks else 'everywhere'}"
    with torch.enable_grad():
        x = x.requires_grad_()
        [gradient] = torch.autograd.grad(run(x.clone()).sum() + 0 * x.sum(), x)  # that of a step has no graph
    if not ((gradient.view_as(y) - slopes).abs() <= _ALIKE * (1 + slopes.abs())).all():
        return f"{said}, but its gradient isn't its slope"
    apart = (y[1:] - y[:-1, :1] - slopes[:-1] * (t[1:] - t[:-1, :1])).abs() > close[1:] + close[:-1]
    straight = [kink for kink, bends in zip(kinks, apart.flatten(1).any(1).tolist(), strict=True) if not bends]
    return f"{said} with kinks {kinks}, but doesn't bend at {straight[0]:g}" if straight else None


def _drawn(shape: Sequence[int], device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
