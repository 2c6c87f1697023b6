"""The precision of a measurement: float32 at least, and float32 in full, whatever surrounds the call."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.backends import cuda, cudnn

from genlib.network.functional import Network

__all__ = ["full_precision", "upcast", "upcast_network"]

if hasattr(cudnn, "conv"):  # torch 2.9 and later, where reading the older switch fails once the newer has been set
    _PRODUCTS, _SWITCH, _FULL = (cuda.matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
else:
    _PRODUCTS, _SWITCH, _FULL = (cuda.matmul, cudnn), "allow_tf32", False


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32, which keeps 10 bits of float32, in products and convolutions on a GPU; `@full_precision()` decorates.

    Nor the caller's autocast or inference mode, nor functions that torch.compile made, which have no second derivative,
    nor torch's other way through attention, for passes without a gradient alone, which sets padding to zero.
    """
    before = [getattr(product, _SWITCH) for product in _PRODUCTS]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        for product in _PRODUCTS:
            setattr(product, _SWITCH, _FULL)
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for product, value in zip(_PRODUCTS, before, strict=True):
            setattr(product, _SWITCH, value)


def upcast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def upcast_network(network: Network) -> Network:
    params, buffers = ({name: upcast(t) for name, t in ts.items()} for ts in (network.params, network.buffers))
    return replace(network, params=params, buffers=buffers)
