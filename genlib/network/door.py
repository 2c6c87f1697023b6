"""The check at the door: on a few samples, whether a forward pass is a function of the weights and of each sample."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from genlib.network.activations import require_claims
from genlib.network.errors import first_line, out_of_memory
from genlib.network.functional import Network
from genlib.network.operations import Rerun, dense_steps, row
from genlib.network.outputs import logits_of

__all__ = ["Entangled", "admitted", "spread"]

_SAMPLES = 8
_ALIKE = 1e-3  # of the largest output: what other sums in another order may change, and chance or neighbours exceed


class Entangled(ValueError):
    """The refusal of a network whose output at a sample hangs on the samples beside it: its weights can be measured."""


def admitted(network: Network, inputs: Tensor, axis: int) -> Network:
    """The network, once its forward pass is seen to be a function of its weights and of each sample by itself.

    A few samples, along `axis`, pass it twice together and once alone, and its graph once: three and a bit forward
    passes over eight of them, and one host read; a network that was admitted passes again for nothing, and so does all
    on the meta device. One that writes into its inputs gets a copy of every batch from now on, one that changes its
    buffers without a change of its outputs copies of these, with a warning; one that returns probabilities is warned
    of. ValueError: a forward pass that fails, gives no tensor, draws random numbers, changes its outputs with its
    state, or takes weights that are no parameters of the module; `Entangled`.
    """
    if "door" in network.passed or inputs.device.type == "meta":
        return network
    few = spread(inputs, axis)
    buffers = {name: buffer.clone() for name, buffer in network.buffers.items()}
    lent = replace(network, params={name: w.clone() for name, w in network.params.items()}, buffers=buffers)

    def outputs(x: Tensor) -> Tensor:
        return lent.apply(lent.params, x, inputs_of_each=axis == 1)

    given = few.clone()
    with _own_weights_tracked(network.module), torch.enable_grad():
        first = _computed(outputs, given, network)
        if first.requires_grad:
            raise ValueError(_out_of_sight(network.module, first))
    axis_of_outputs = int(network.size is not None)
    if first.dim() != axis_of_outputs + 2 or first.shape[axis_of_outputs] != few.shape[axis]:
        raise ValueError(
            f"network: its output on {few.shape[axis]} samples has the shape {tuple(first.shape)}; it must be "
            "[samples, classes], so take one position, a mean over them, or each of them as a sample of its own"
        )
    require_claims(lent, few[0] if axis == 1 else few)
    wrote = given._version > 0  # a clone's first version is 0
    with torch.no_grad():
        again = outputs(few.clone())
        middle = few.shape[axis] // 2  # on which samples before and behind it may tell
        alone = _alone(outputs, few.narrow(axis, middle, 1).clone(), network.module)
        misread = _misread(_with_own_state(lent), few, first, of_each=axis == 1)
    changed = {name: ~_same(buffer, network.buffers[name]) for name, buffer in buffers.items()}
    alike = [_alike(first, again), _alike(first.narrow(axis_of_outputs, middle, 1), alone), _same(given, few)]
    kept = [_same(w, lent.params[name]) for name, w in network.params.items()]
    trained = ~torch.stack([*kept, torch.ones_like(misread)]).all()
    del lent
    looks = [*(~one for one in alike), misread, trained, _probabilities(first), *changed.values()]
    random, entangled, writes, misread, trained, probabilities, *states = torch.stack(looks).tolist()  # one host read
    moved = [name for name, state in zip(changed, states, strict=True) if state]
    if trained:
        raise ValueError(
            "network: its forward pass writes into its own weights, as clamping their data and max_norm do; do that "
            "after a step of training, in no forward pass"
        )
    if random and moved:
        raise ValueError(
            f"network: its forward pass changes {', '.join(moved)}, and its outputs with it; call module.eval() before "
            "measuring, or keep the state as it is"
        )
    if random:
        where = _where_it_draws(_with_own_state(network), few[0] if axis == 1 else few)
        raise ValueError(
            f"network: {where} draws random numbers, so that a sample gives another output each time; call "
            "module.eval() before measuring, or set its probability to 0"
        )
    if entangled and not _by_rounding(network, few, axis):
        raise Entangled(_entangled(network.module))
    if probabilities:
        warnings.warn(
            "network: its outputs are probabilities, and cross-entropy, margins and Jacobians of classes take logits; "
            "return what enters its softmax",
            stacklevel=2,
        )
    if moved:
        warnings.warn(f"network: its forward pass changes {', '.join(moved)}; a copy is measured", stacklevel=2)
        network = _with_own_state(network)
    if misread:
        network = replace(network, graph=None, layers=())
    ran = _run(_with_own_state(network), few[0] if axis == 1 else few) if network.graph is None else None
    if writes or wrote or moved or misread or ran:  # another network: who holds the first one passes it again
        return replace(network, passed={"door"}, writes_inputs=writes or wrote, ran=ran)
    network.passed.add("door")
    return network


def _probabilities(outputs: Tensor) -> Tensor:
    """Whether these are numbers that aren't negative and sum to one, not all of them 0 and 1, as after a softmax."""
    each = ((outputs.sum(-1) - 1).abs() < 1e-4) & (outputs >= 0).all(-1)
    return each.all() & ((outputs > 0) & (outputs < 1)).any()


def _with_own_state(network: Network) -> Network:
    return replace(network, buffers={name: buffer.clone() for name, buffer in network.buffers.items()})


def _misread(network: Network, x: Tensor, outputs: Tensor, *, of_each: bool) -> Tensor:
    """Whether the graph does other than the module, as where a view is written into.

    The first network of a stack stands for all, but where the graph holds what that one computed from its buffers.
    """
    unlike = torch.zeros((), dtype=torch.bool, device=x.device)
    if network.graph is None or dense_steps(network.module) is not None or row(network.module) is not None:
        return unlike
    computed = any("constant" in node.meta for node in network.graph.nodes)
    for i, one in enumerate(network.each if computed else network.each[:1]):
        its_own, own = outputs if network.size is None else outputs[i], x[i] if of_each else x
        try:
            found = logits_of(Rerun(one.shared_copy(), graph=network.graph).run(own.clone()), len(own))
        except Exception:  # whatever the module's operations raise out of their place
            return ~unlike
        unlike = unlike | ~_alike(its_own, found) if found.shape == its_own.shape else ~torch.zeros_like(unlike)
    return unlike


def spread(tensor: Tensor, axis: int, count: int = _SAMPLES) -> Tensor:
    """A few samples, from all over the data."""
    every = slice(None, None, max(1, tensor.shape[axis] // count))
    return tensor[every][:count] if axis == 0 else tensor[:, every][:, :count]


@torch.no_grad()
def _run(network: Network, x: Tensor) -> tuple[str, ...]:
    """The names of the modules, in the order in which they run."""
    module, names = network.each[0].shared_copy(), []
    for name, part in module.named_modules():
        if not isinstance(part, torch.jit.ScriptModule):  # which takes no hooks
            part.register_forward_pre_hook(lambda *_, name=name: names.append(name))
    module(x.clone())
    return tuple(names)


@contextmanager
def _own_weights_tracked(module: nn.Module) -> Iterator[None]:
    """The module's own parameters ask for gradients in here: an output that hangs on them does so, too."""
    frozen = [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad and not p.is_inference()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _computed(outputs: Callable[[Tensor], Tensor], x: Tensor, network: Network) -> Tensor:
    try:
        return outputs(x)
    except Exception as error:
        if network.size is None or out_of_memory(error):
            raise
        raise ValueError(f"{first_line(error).split('; give inputs')[0]}; or measure its networks alone") from error


def _alone(outputs: Callable[[Tensor], Tensor], one: Tensor, module: nn.Module) -> Tensor:
    try:
        return outputs(one)
    except Exception as error:  # BatchNorm without running statistics, for one, has no variance of one sample
        if out_of_memory(error):
            raise
        raise Entangled(_entangled(module)) from error


@torch.no_grad()
def _by_rounding(network: Network, few: Tensor, axis: int) -> bool:
    """Whether in float64 a sample's output is the same alone: a norm of units that are next to zero enlarges what sums
    in another order change."""
    params, buffers = (
        {name: t.double() if t.is_floating_point() else t.clone() for name, t in own.items()}
        for own in (network.params, network.buffers)
    )
    double = replace(network, params=params, buffers=buffers)
    few, middle = few.double() if few.is_floating_point() else few, few.shape[axis] // 2
    try:
        together, alone = (
            double.apply(double.params, x.clone(), inputs_of_each=axis == 1) for x in (few, few.narrow(axis, middle, 1))
        )
    except Exception:  # what computes in float32 whatever it is given
        return False
    return bool(_alike(together.narrow(int(network.size is not None), middle, 1), alone))


def _entangled(module: nn.Module) -> str:
    at_hand = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None
    ]
    by = f"{', '.join(at_hand)} normalizes by the batch at hand" if at_hand else "its forward pass mixes samples"
    return (
        f"network: {by}, so that the output at a sample hangs on the samples beside it and only the weights can "
        "be measured; give it fixed statistics (track_running_stats=True), or take the mean over samples out of it"
    )


def _alike(one: Tensor, other: Tensor) -> Tensor:
    apart, largest = (one - other).abs(), one.abs().amax() if one.numel() else one.new_zeros(())
    return (apart.nan_to_num(0, 0, 0) <= _ALIKE * largest.nan_to_num(0, 0, 0) + torch.finfo(one.dtype).tiny).all()


def _same(one: Tensor, other: Tensor) -> Tensor:
    return ((one == other) | (one != one) & (other != other)).all()


def _out_of_sight(module: nn.Module, output: Tensor) -> str:
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(output.sum(), list(own.values()), allow_unused=True) if own else ()
    names = ", ".join(name for name, gradient in zip(own, found, strict=True) if gradient is not None)
    what = f"{names} past the module's own attributes" if names else "weights that are no parameters of it"
    return (
        f"network: its forward pass takes {what}, as from a list, a dict or a closure, where no measure can move them; "
        "hold layers in nn.ModuleList or nn.ModuleDict, and take their weights as self.layer.weight"
    )


def _where_it_draws(network: Network, inputs: Tensor) -> str:
    """The first module whose outputs differ between two passes, or before which they do."""
    module, met = network.each[0].shared_copy(), []
    for name, part in module.named_modules():
        if name and not list(part.children()):
            part.register_forward_hook(lambda part, x, y, name=name: met.append((name, type(part).__name__, x, y)))
    passes = []
    with torch.no_grad():
        for _ in range(2):
            met.clear()
            module(inputs.clone())
            passes.append(list(met))
    for (name, kind, x, y), (*_, other_x, other_y) in zip(*passes, strict=False):
        if _differ(x, other_x):
            return f"its forward pass, before {name} ({kind}),"
        if _differ(y, other_y):
            return f"{name} ({kind})"
    return "its forward pass"


def _differ(one: object, other: object) -> bool:
    tensors = zip(tree_leaves(one), tree_leaves(other), strict=False)
    return any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in tensors)
