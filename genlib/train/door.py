"""What training asks before its first step: a network of which a copy can be trained, and data that it takes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from genlib.data import Dataset
from genlib.network import Network, copied, dense_steps, plainly_called
from genlib.network.door import Entangled, admitted
from genlib.network.losses import LOSSES, SampleLoss, require_binary

__all__ = [
    "SAMPLES",
    "as_trained",
    "cast",
    "few",
    "in_precision",
    "put",
    "rehearsed",
    "require_finite_data",
    "require_labels",
    "require_logits",
    "require_module",
    "require_samples_alone",
    "sparing",
    "stack_fails",
    "tensors_of",
    "trainable",
    "training_copy",
    "undisturbed",
]

SAMPLES = 8


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever autocast, inference mode or absence of gradients the caller stands in, here is none of it."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def require_module(module: nn.Module, name: str = "module") -> None:
    """Refuse what is no module, and lazy layers that have not seen a batch."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} is a {type(module).__name__}; give a torch.nn.Module")
    if lazy := [n for n, t in [*module.named_parameters(), *module.named_buffers()] if is_lazy(t)]:
        raise ValueError(f"network: {', '.join(lazy)} has no shape yet; pass it a batch before")


def trainable(module: nn.Module, name: str = "module") -> nn.Module:
    """The network itself, out of DataParallel and torch.compile; refused where it has nothing to train."""
    require_module(module, name)
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) or "_orig_mod" in module._modules:
        module = module._modules.get("_orig_mod", module._modules.get("module"))
    if late := [name for name, p in module.named_parameters() if getattr(p, "_post_accumulate_grad_hooks", None)]:
        raise ValueError(
            f"network: {', '.join(late)} has a hook after its gradient is accumulated, which isn't done here; take it "
            "off, and give what it does as optimizer"
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("network: none of its parameters is trained; set requires_grad_(True) on those that are to be")
    return module


def training_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device in training mode, with the hooks of its weights, which torch leaves out of a copy."""
    copy = copied(module).to(device).train()
    for own, p in zip(module.parameters(), copy.parameters(), strict=True):
        for hook in (own._backward_hooks or {}).values():
            p.register_hook(hook)
    return copy


def rehearsed(module: nn.Module, inputs: Tensor, labels: Tensor, loss: SampleLoss) -> bool:
    """Whether a forward pass writes into its inputs, found on a copy by two passes over a few samples and one back.

    ValueError: passes that fail, outputs that are no logits or too few for the labels, weights out of a copy's reach,
    no weights that the outputs hang on.
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad and not p.is_inference()}
    device = inputs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        copy, writes = copied(module).to(device), False
        for training in (False, True):
            given = _normal(inputs)
            version = given._version
            outputs = as_trained(copy.train(training))(given)
            writes |= given._version > version or not _same(given, inputs)
            classes = require_logits(outputs, len(inputs))
        require_labels(classes, labels, loss)
        moving = [p for p in copy.parameters() if p.requires_grad]
        found = _gradients(outputs.sum(), [*moving, *own.values()])
    if outside := [name for name, g in zip(own, found[len(moving) :], strict=True) if g is not None]:
        raise ValueError(
            f"network: its forward pass takes {', '.join(outside)} of this very module, as a closure does, so that no "
            "copy of it can be trained; take weights as self.layer.weight, in a method of the module's class"
        )
    if all(g is None for g in found):
        raise ValueError(
            "network: its outputs have no gradient in its parameters; take detach(), no_grad() and the like out of its "
            "forward pass"
        )
    return writes


def as_trained(module: Callable[[Tensor], Tensor], *, writes: bool = False) -> Callable[[Tensor], Tensor]:
    """The forward pass, with a copy of the batch where it `writes` into it; what it raises is refused by name."""

    def forward(inputs: Tensor):  # maybe no tensor, which is refused by name
        try:
            return module(inputs.clone() if writes else inputs)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the module's own forward raises
            raise _failed(
                f"forward pass fails on inputs of shape {tuple(inputs.shape)} and {inputs.dtype}", error
            ) from error

    return forward


def sparing(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward pass, that leaves its inputs as they were: the first batch is a copy, all are where it writes."""
    writes = None

    def forward(inputs: Tensor):
        nonlocal writes
        if writes is False:
            return module(inputs)
        given = _normal(inputs)
        version = given._version
        outputs = module(given)
        if writes is None:
            writes = given._version > version or not _same(given[:SAMPLES], inputs[:SAMPLES])
        return outputs

    return forward


def require_logits(outputs: object, samples: int) -> int:
    """The number of classes; refused are outputs that aren't one row of logits a sample."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"network: its output is a {type(outputs).__name__}; wrap it in a module that returns the logits alone"
        )
    if outputs.dim() != 2 or len(outputs) != samples or not outputs.is_floating_point():
        raise ValueError(
            f"network: its output on {samples} samples has the shape {tuple(outputs.shape)} and {outputs.dtype}; "
            "it must be [samples, classes], of real numbers"
        )
    return outputs.shape[1]


def require_labels(classes: int, labels: Tensor, loss: SampleLoss) -> None:
    """Refuse labels beyond the classes of the network; a loss of one's own may read them as it likes. A host read."""
    if loss not in LOSSES.values():
        return
    if classes == 1:
        require_binary(labels)
    elif ((labels < 0) | (labels >= classes)).any():
        raise ValueError(
            f"labels has values outside 0 … {classes - 1}, the classes of the network; number the classes from 0, and "
            "give the network one output a class"
        )


def require_samples_alone(module: nn.Module, inputs: Tensor) -> None:
    """Refuse, for 1-SAM, a network whose output at a sample hangs on the samples beside it."""
    if hooked := [name for name, p in module.named_parameters() if p._backward_hooks]:
        raise ValueError(
            f"network: {', '.join(hooked)} has a hook, which no sample's own gradient passes; train by SAM"
        )
    with torch.random.fork_rng([]), warnings.catch_warnings(action="ignore"):
        try:
            admitted(Network.of(copied(module).to(inputs.device).eval()), inputs, 0)
        except Entangled:
            raise
        except ValueError:  # what can't be measured, as chance, may be trained
            return


def cast(inputs: Tensor, module: nn.Module) -> Tensor:
    """Inputs in the precision of the network's first weights, if none of its weights have that of the inputs."""
    precisions = [p.dtype for p in module.parameters() if p.is_floating_point()]
    if not inputs.is_floating_point() or not precisions or inputs.dtype in precisions:
        return inputs
    return inputs.to(precisions[0])


def in_precision(dataset: Dataset, module: nn.Module) -> Dataset:
    """The data set in the precision of the network, of tensors that autograd may keep."""
    if not isinstance(dataset, Dataset):
        raise ValueError(f"dataset is a {type(dataset).__name__}; give a genlib.data.Dataset")
    changed = {}
    for name in ("inputs", "labels", "test_inputs", "test_labels"):
        tensor = getattr(dataset, name)
        if isinstance(tensor, Tensor):
            usable = cast(_normal(tensor) if tensor.is_inference() else tensor, module)
            if usable is not tensor:
                changed[name] = usable
    return replace(dataset, **changed) if changed else dataset


def few(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The first samples."""
    order = torch.arange(min(SAMPLES, len(dataset)), device=dataset.device)
    return next(iter(dataset.minibatches(order, len(order))))


def require_finite_data(dataset: Dataset, *, test: bool = False) -> None:
    """Refuse inputs with NaN or infinity, to be asked once a loss isn't finite. One host read."""
    name = "test_inputs" if test else "inputs"
    inputs = getattr(dataset, name)
    if isinstance(inputs, Tensor) and not inputs.isfinite().all():
        raise ValueError(f"dataset: {name} hold values that aren't finite; leave those samples out, or fill them in")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module: parameters, every buffer, and those that are plain attributes, as hooks leave them."""
    return {
        f"{prefix}.{name}".lstrip("."): tensor.detach()
        for prefix, part in module.named_modules()
        for held in (part._parameters, part._buffers, vars(part))
        for name, tensor in held.items()
        if isinstance(tensor, Tensor)
    }


@torch.no_grad()
def put(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """The module, with these tensors in it."""
    for full_name, tensor in tensors.items():
        prefix, _, name = full_name.rpartition(".")
        part = module.get_submodule(prefix)
        if name in part._parameters:
            part._parameters[name].copy_(tensor)
        else:
            held = part._buffers if name in part._buffers else vars(part)
            like = held.get(name)
            held[name] = tensor.to(like) if isinstance(like, Tensor) else tensor
    return module


def stack_fails(modules: Sequence[nn.Module], datasets: Sequence[Dataset]) -> str | None:
    """Why a stack of these doesn't train each as it would be alone, or None; outputs, gradients and buffers compared.

    On a few samples, in both modes, each network passes forward and back. Dense networks need no comparison.
    """
    kinds = [[(p.dtype, p.requires_grad) for p in module.parameters()] for module in modules]
    if any(kind != kinds[0] for kind in kinds):
        return "its networks differ in the precision of a parameter, or in whether it is trained"
    if len({dataset.input_shape for dataset in datasets}) > 1:
        return "its data sets have inputs of different shapes"
    if any(p.is_complex() or p._backward_hooks for module in modules for p in module.parameters()):
        return "its weights are complex, or have hooks"
    if all(_plainly_dense(module) for module in modules):
        return None
    device = datasets[0].device
    data = [few(dataset)[0] for dataset in datasets]
    smallest = min(len(x) for x in data)
    inputs = torch.stack([_normal(x[:smallest]) for x in data])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            stack = Network.stack([copied(module) for module in modules])
            stack = replace(stack, params=_on(stack.params, device), buffers=_on(stack.buffers, device))
            stack.module.to(device)
            alone = [copied(module).to(device) for module in modules]
            again = copied(modules[0]).to(device)
            compared = [_alike(stack, alone, again, inputs, training) for training in (False, True)]
            if all(compared):  # with what a pass of training has left behind
                compared.append(_alike(stack, alone, again, inputs, False))
        except Exception as error:  # vmap raises much, in words of its own
            return f"its forward pass can't be stacked ({type(error).__name__}: {_said(error)})"
    if False in compared:
        return "the outputs, gradients or buffers of the stack are not those of its networks"
    return None if True in compared else "it draws random numbers in evaluation mode, so that nothing can be compared"


def _alike(stack: Network, alone: list[nn.Module], again: nn.Module, inputs: Tensor, training: bool) -> bool | None:
    """Whether the stack does what its networks do; None where chance decides, dropout layers apart."""
    for module in (stack.module, again, *alone):
        module.train(training)
        for part in module.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.eval()
    held = dict(alone[0].named_buffers())
    each = [_pass(module, inputs[i].clone()) for i, module in enumerate(alone)]
    if not _close(each[0], _pass(again, inputs[0].clone())):
        # A buffer that is changed in place is changed in a stack; one that is replaced is lost there.
        return None if all(buffer is held.get(name) for name, buffer in alone[0].named_buffers()) else False
    trains = {name for name, p in stack.module.named_parameters() if p.requires_grad}
    params = {name: p.detach().requires_grad_(name in trains) for name, p in stack.params.items()}
    outputs = stack.apply(params, inputs.clone(), buffers=stack.buffers, inputs_of_each=True)
    found = _gradients(_weighted(outputs), [params[name] for name in params if name in trains])
    together = outputs.detach(), found, list(stack.buffers.values())
    rows = [tree_map(lambda t, i=i: None if t is None else t[i], together) for i in range(len(each))]
    return all(_close(row, one) for row, one in zip(rows, each, strict=True))


_Pass = tuple[Tensor, list[Tensor | None], list[Tensor]]  # outputs, gradients, buffers afterwards


def _pass(module: nn.Module, inputs: Tensor) -> _Pass:
    outputs = module(inputs)
    found = _gradients(_weighted(outputs), [p for p in module.parameters() if p.requires_grad])
    return outputs.detach(), found, [buffer.detach().clone() for buffer in module.buffers()]


def _weighted(outputs: Tensor) -> Tensor:
    """A sum in which every class counts differently, so that a softmax's has a gradient, too."""
    weights = torch.arange(1, outputs.shape[-1] + 1, device=outputs.device, dtype=outputs.dtype)
    return (outputs * weights.cos()).sum()


def _gradients(value: Tensor, params: list[Tensor]) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(params)
    try:
        return list(torch.autograd.grad(value, params, allow_unused=True))
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise _failed("backward pass fails", error) from error


def _close(one: _Pass, other: _Pass) -> bool:
    pairs = list(zip(one[1], other[1], strict=True))
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    zero = all(not (a if b is None else b).any() for a, b in pairs if (a is None) != (b is None))
    # Gradients against the largest of all: that of a bias before BatchNorm, for one, is nothing but rounding.
    largest = max((a.abs().max().item() for a, _ in present if a.numel()), default=0.0)
    return (
        zero
        and _near(one[0], other[0])
        and all(_near(a, b, largest) for a, b in present)
        and all(_near(a, b) for a, b in zip(one[2], other[2], strict=True))
    )


def _near(one: Tensor, other: Tensor, largest: float | None = None) -> bool:
    if one.numel() == 0 or not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = torch.finfo(one.dtype).eps ** 0.4  # 2e-3 in float32: beyond the rounding of other sums
    scale = one.nan_to_num().abs().max().item() if largest is None else largest
    return torch.allclose(one, other, rtol=0, atol=tolerance * max(scale, torch.finfo(one.dtype).tiny), equal_nan=True)


def _plainly_dense(module: nn.Module) -> bool:
    """Whether a network is what `dense_steps` says, with no weights and no operations beside those layers'."""
    steps = dense_steps(module)
    if steps is None or not plainly_called(module):
        return False
    covered = {f"{name}.{own}" for name, layer in steps for own, p in layer._parameters.items() if p is not None}
    return covered == {name for name, _ in module.named_parameters()} and not any(True for _ in module.buffers())


def _on(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device) for name, tensor in tensors.items()}


def _normal(tensor: Tensor) -> Tensor:
    """A copy that autograd may keep, of an inference tensor, too."""
    return torch.empty_like(tensor).copy_(tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one != one) & (other != other)).all())


def _failed(what: str, error: Exception) -> ValueError:
    mend = "give data and a batch_size that it takes in training and in evaluation mode"
    return ValueError(f"network: its {what} ({type(error).__name__}: {_said(error)}); {mend}")


def _said(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
