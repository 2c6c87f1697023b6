"""What a module with weights does in terms of torch's own layers: told by its exact type, by its graph, or by trial."""

import copy
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from genlib.network.functional import Params
from genlib.network.operations import traced

__all__ = [
    "BATCH_NORM",
    "CONVOLUTIONS",
    "INSTEAD",
    "TRANSPOSED",
    "WEIGHTED",
    "Block",
    "WeightedLayer",
    "computed_weights",
    "computes_weights",
    "keeps_statistics",
    "recognized",
    "refusal",
    "require_matrix",
    "scale_and_shift",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CALLS = dict(zip((F.linear, F.conv1d, F.conv2d, F.conv3d), WEIGHTED[:4], strict=True))
_CALLS |= dict(zip((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), TRANSPOSED, strict=True))
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

INSTEAD = "measure its curvature, sharpness or sensitivity instead"


@dataclass(frozen=True)
class Block:
    """Where a layer is one matrix of several in a module: the rows of a parameter, transposed in an embedding."""

    module: str
    parameter: str
    rows: slice
    transposed: bool


@dataclass(frozen=True)
class WeightedLayer:
    """A layer with weights, as the layer of torch that does the same, or the registered module itself."""

    name: str
    operation: nn.Module
    computed: fx.GraphModule | None = None  # gives its weight, and its bias if any, where they are no parameters
    folded: str | None = None  # the BatchNorm whose scale the weights take in
    block: Block | None = None

    @property
    def module(self) -> str:
        """The name of the module that runs."""
        return self.name if self.block is None else self.block.module


def recognized(name: str, module: nn.Module) -> WeightedLayer | None:
    """The module as a dense layer, a convolution or a BatchNorm, or None where it isn't exactly one.

    A type of torch is what it is. A module that keeps statistics is a BatchNorm if it acts as one, and one whose
    forward calls F.linear or a convolution on its input once and does no more is a layer of the weights in that call.
    """
    if type(module) in _BATCH_NORMS or (type(module) in WEIGHTED and {"weight", "bias"} <= module._parameters.keys()):
        return WeightedLayer(name, module)
    if keeps_statistics(module):
        norm = nn.BatchNorm2d(len(module.running_mean), module.eps, device="meta")
        return WeightedLayer(name, norm) if _acts_as_batch_norm(module) else None
    return _of_one_call(name, module) if module._parameters or isinstance(module, WEIGHTED) else None


def keeps_statistics(module: nn.Module) -> bool:
    moments = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(moment, Tensor) for moment in moments) and isinstance(getattr(module, "eps", None), float)


def scale_and_shift(tensors: Params, eps: float) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation as x -> scale x + shift, by the names of its tensors."""
    scale = (tensors["running_var"] + eps).rsqrt()
    if tensors.get("weight") is not None:
        scale = scale * tensors["weight"]
    bias = tensors.get("bias")
    return scale, (0 if bias is None else bias) - tensors["running_mean"] * scale


def _acts_as_batch_norm(module: nn.Module) -> bool:
    """Whether the module is x -> scale x + shift, and then its `act` if it has one, on a few random numbers."""
    if any(name not in ("weight", "bias") for name, _ in module.named_parameters()):
        return False
    try:
        module = copy.deepcopy(module).double()
        tensors = module._parameters | module._buffers
        scale, shift = scale_and_shift(tensors, module.eps)
        deviations = (tensors["running_var"] + module.eps).sqrt()
        for sizes in ((2, 2), (), (2, 2, 2)):
            x = 2 * _drawn((2, *sizes, len(scale)), scale) * deviations + tensors["running_mean"]
            expected = getattr(module, "act", nn.Identity())((x * scale + shift).movedim(-1, 1))
            try:
                found = module(x.movedim(-1, 1).contiguous())
            except (RuntimeError, ValueError, AssertionError):
                continue  # images of another number of axes
            return torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    except Exception:  # whatever a stranger's module raises
        return False
    return False


def _drawn(shape: tuple[int, ...], like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


@torch.no_grad()
def _of_one_call(name: str, module: nn.Module) -> WeightedLayer | None:
    graph = traced(module, follow_buffers=True)
    call = None if graph is None else graph.output_node().args[0]
    if not isinstance(call, fx.Node) or call.target not in _CALLS:
        return None
    kind = _CALLS[call.target]
    arguments = _TRANSPOSED_ARGUMENTS if kind in TRANSPOSED else _ARGUMENTS
    geometry = dict(zip(arguments, call.args, strict=False)) | call.kwargs
    x, *tensors = (geometry.pop(part, None) for part in arguments[:3])
    tensors = [tensor for tensor in tensors if tensor is not None]
    own = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    constants = {node.target for node in graph.nodes if node.op == "get_attr"}
    if not (x.op == "placeholder" and set(x.users) == {call} and x not in tensors and constants <= own):
        return None
    if any(isinstance(value, fx.Node) for value in geometry.values()):
        return None
    graph.erase_node(graph.output_node())
    graph.erase_node(call)
    graph.erase_node(x)
    graph.output(tuple(tensors))
    computed = fx.GraphModule(module, graph)
    on_meta = {part: tensor.to("meta") for part, tensor in computed.state_dict().items()}
    try:
        with _Function():
            shape = functional_call(computed, on_meta, ())[0].shape
        if kind is nn.Linear:
            return WeightedLayer(name, nn.Linear(shape[1], shape[0], device="meta"), computed)
        groups = geometry.get("groups", 1)
        channels = (shape[0], shape[1] * groups) if kind in TRANSPOSED else (shape[1] * groups, shape[0])
        return WeightedLayer(name, kind(*channels, shape[2:], **geometry, device="meta"), computed)
    except Exception:  # whatever a stranger's arithmetic raises on shapes alone
        return None


class _Function(TorchDispatchMode):
    """Lets through what is a function of tensors: no random numbers, nothing that writes into what it is given."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            raise RuntimeError(f"{func} is no function of the weights")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def computed_weights(layer: WeightedLayer, own: Params) -> tuple[Tensor, Tensor | None]:
    """Weight and bias [models, …] of a layer that computes them, from its own tensors [models, …]."""
    computed = layer.computed
    assert computed is not None
    names = computed.state_dict().keys() & own.keys()
    models = range(len(next(iter(own.values()))))
    each = [functional_call(computed, {name: own[name][i] for name in names}, ()) for i in models]
    weight, *bias = (torch.stack(tensors) for tensors in zip(*each, strict=True))
    return weight, bias[0] if bias else None


def require_matrix(name: str, module: nn.Module, matrix: Tensor) -> None:
    """Refuse a registered matrix that isn't what the module, in float64, does to differences of random inputs."""
    if matrix.dim() != 2:
        raise ValueError(
            f"network: the matrix registered for {name} has shape {tuple(matrix.shape)}; it must be [outputs, inputs]"
        )
    x = _drawn((8, matrix.shape[1]), matrix)
    try:
        with torch.no_grad():
            found = module(x.clone())
    except Exception:  # it takes inputs of another shape than the rows of its matrix
        return
    expected = (x[1:] - x[:1]) @ matrix.T
    moved = found[1:] - found[:1]
    if moved.shape != expected.shape or not torch.allclose(moved, expected, rtol=1e-6, atol=1e-9):
        raise ValueError(
            f"network: {name} ({type(module).__name__}) isn't the linear map whose matrix is registered for it, and a "
            f"product of norms doesn't bound it; {INSTEAD}"
        )


def computes_weights(module: nn.Module) -> bool:
    """Whether a module that isn't recognized is a layer of torch whose weights something else computes."""
    return type(module) in WEIGHTED or bool(getattr(module, "parametrizations", None))


def refusal(name: str, module: nn.Module) -> str:
    """Why a module with weights, which isn't recognized, has no norm here, and what to do."""
    kind, where = type(module).__name__, name or "the module itself"
    if computes_weights(module):
        return (
            f"the weight of {name or 'the module'} is computed from other tensors; make it a parameter first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove, "
            "torch.nn.utils.remove_weight_norm or remove_spectral_norm)"
        )
    if keeps_statistics(module):
        return f"{where} is of type {kind}, which keeps statistics but isn't BatchNorm in evaluation; {INSTEAD}"
    if isinstance(module, WEIGHTED):
        return (
            f"{where} is of type {kind}, whose forward isn't one F.linear or convolution of its input, with a weight "
            "from its own parameters and buffers; write what else it does, like padding, as a module of its own "
            f"(and merge a second branch of weights into the first), or {INSTEAD}"
        )
    parts = ", ".join(part for part, _ in module.named_parameters(recurse=False)) or "arithmetic"
    said = (
        f"{where} is of type {kind}, no dense layer, convolution or BatchNorm, so that a product of layers' norms "
        f"would leave out its {parts}; {INSTEAD}"
    )
    if _of_a_package(type(module)) or list(module.children()):
        return said
    return f"{said}, or, if it is a linear map, give its matrix by norms.register_norm({kind}, matrix)"


def _of_a_package(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return kind.__module__.startswith("torch.") or "site-packages" in file or "dist-packages" in file
