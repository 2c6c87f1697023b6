"""The shapes of the images on which a network's convolutions work."""

import functools
from dataclasses import replace

import torch
from torch import fx, nn

from genlib.network.blocks import runs_step_by_step
from genlib.network.functional import Network
from genlib.network.precision import upcast_network
from genlib.network.weights import CONVOLUTIONS, MORE, TRANSPOSED, TWICE, WeightedLayer, checked_shape, traced_layers

__all__ = ["layer_input_shapes"]


def layer_input_shapes(
    network: Network,
    input_shape: tuple[int, ...],
    found: tuple[list[WeightedLayer], fx.Graph | None] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shape [channels, …] of one sample at the input of each convolution. Cost: one forward pass of one sample.

    None without convolutions, in a network that torch.fx can trace. `found` is what `traced_layers` gives.
    """
    layers, graph = found or traced_layers(network)
    shape = checked_shape(input_shape) if network.arguments is None else ()  # the number of the first sample, then
    watched = {
        layer.module: layer
        for layer in layers
        if graph is None or isinstance(layer.operation, CONVOLUTIONS + TRANSPOSED)
    }
    if not watched:
        return {}
    shapes = {}
    for name, met in _shapes_met(network, list(watched), shape).items():
        where, operation = f"network: {name or 'the module'}", watched[name].operation
        if not met:
            raise ValueError(f"{where} doesn't run on zeros of input_shape {shape}; leave it out of the module")
        if len(met) > 1 and not runs_step_by_step(network.module.get_submodule(name)):
            raise ValueError(f"{where} {TWICE}")
        if len(met[0]) > 1 and watched[name].block is None:
            raise ValueError(f"{where} {MORE}")
        if not isinstance(operation, CONVOLUTIONS + TRANSPOSED):
            continue
        [given] = met[0]
        if len(given) != len(operation.kernel_size) + 2:
            raise ValueError(
                f"{where} runs on a tensor of shape {given}, which isn't a batch of images; give it "
                f"[samples, channels, …] with {len(operation.kernel_size)} more axes"
            )
        shapes[name] = given[1:]
    return shapes


def _shapes_met(network: Network, names: list[str], shape: tuple[int, ...]) -> dict[str, list[list[tuple[int, ...]]]]:
    """The shapes of what these modules are called with, call by call, for one sample of zeros, or else of whole zeros.

    It runs in a copy on the network's own device: a forward may hold or look at values there.
    """
    one = upcast_network(network).each[0]
    module = replace(one, buffers={name: buffer.clone() for name, buffer in one.buffers.items()}).shared_copy()
    met: dict[str, list[list[tuple[int, ...]]]] = {}

    def look(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        met[name].append([tuple(getattr(value, "shape", ())) for value in (*args, *kwargs.values())])

    for name in names:
        module.get_submodule(name).register_forward_pre_hook(functools.partial(look, name), with_kwargs=True)
    tensors = [*one.params.values(), *one.buffers.values()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])
    zeros, failed = like.new_zeros(1, *shape), None
    for inputs in (zeros, zeros.long()):
        met |= {name: [] for name in names}
        try:
            with torch.no_grad(), torch.random.fork_rng([like.device] if like.is_cuda else []):
                module(inputs)
            return met
        except Exception as error:  # whatever the module's own forward raises
            failed = failed or error
    raise ValueError(f"input_shape {shape} does not fit the network: {failed}") from failed
