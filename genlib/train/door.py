"""What training asks before its first step: a network of which a copy can be trained, and data that it takes."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genlib.data import Dataset
from genlib.network import Network, copied
from genlib.network.door import Entangled, admitted
from genlib.network.errors import first_line, out_of_memory
from genlib.network.losses import LOSSES, SampleLoss, require_binary

__all__ = [
    "SAMPLES",
    "as_trained",
    "cast",
    "few",
    "gradients",
    "in_precision",
    "normal",
    "put",
    "rehearsed",
    "require_finite_data",
    "require_labels",
    "require_logits",
    "require_module",
    "require_samples_alone",
    "sparing",
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
            given = normal(inputs)
            version = given._version
            outputs = as_trained(copy.train(training))(given)
            writes |= given._version > version or not _same(given, inputs)
            classes = require_logits(outputs, len(inputs))
        require_labels(classes, labels, loss)
        moving = [p for p in copy.parameters() if p.requires_grad]
        found = gradients(outputs.sum(), [*moving, *own.values()])
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
        except Exception as error:  # whatever the module's own forward raises
            if out_of_memory(error):
                raise
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
        given = normal(inputs)
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
            usable = cast(normal(tensor) if tensor.is_inference() else tensor, module)
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


def gradients(value: Tensor, params: list[Tensor]) -> list[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(params)
    try:
        return list(torch.autograd.grad(value, params, allow_unused=True))
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _failed("backward pass fails", error) from error


def normal(tensor: Tensor) -> Tensor:
    """A copy that autograd may keep, of an inference tensor, too."""
    return torch.empty_like(tensor).copy_(tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one != one) & (other != other)).all())


def _failed(what: str, error: Exception) -> ValueError:
    mend = "give data and a batch_size that it takes in training and in evaluation mode"
    return ValueError(f"network: its {what} ({type(error).__name__}: {first_line(error)}); {mend}")
