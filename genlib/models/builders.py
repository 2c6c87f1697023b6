"""Networks by name, as a table of settings has them."""

import math
import re

from torch import nn

from genlib import scale
from genlib.models.convolutional import inception_v3, small_alexnet, small_inception, vgg
from genlib.models.dense import mlp
from genlib.models.initialization import require_one_of

__all__ = ["build"]


def build(name: str, input_shape: tuple[int, ...], classes: int, **options) -> nn.Module:
    """The network that a table of settings names; `input_shape` is of one sample, options go to its function.

    Names: `mlp 3x512` (hidden layers, width), `small_inception`, `small_alexnet`, `vgg`, `inception_v3`.
    In a dry run a `vgg` is of width 8, for there it took most of the time.
    """
    if match := re.fullmatch(r"mlp (\d+)[x×](\d+)", name):
        return mlp(math.prod(input_shape), classes, depth=int(match[1]), width=int(match[2]), **options)
    networks = {f.__name__: f for f in (small_inception, small_alexnet, vgg, inception_v3)}
    require_one_of("name", name, [*networks, "mlp 1x512"])
    if name == "vgg" and scale.dry_run():
        options |= {"width": 8}
    return networks[name](classes, input_shape=input_shape, **options)
