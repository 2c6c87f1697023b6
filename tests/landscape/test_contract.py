"""What every look at the landscape keeps to, and what it refuses."""

import math

import pytest
import torch
from cases import CASES, data, dense, residual, unchanged
from landscape_cases import blended
from torch import nn

from genlib.landscape import basin_radius, filter_normalized_directions, line, plane, surface
from genlib.network import Network


def everything(network, other, third, inputs, labels):
    return {
        "line": lambda: line(network, other, inputs, labels, points=4),
        "plane": lambda: plane(network, other, third, inputs, labels, points=4),
        "surface": lambda: surface(network, inputs, labels, points=4),
        "basin_radius": lambda: basin_radius(network, inputs, labels, increase=0.1, directions=4),
    }


KERNELS = list(everything(*[None] * 5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_all_is_left_as_it_was(kernel, name):
    network, inputs, labels = CASES[name]()
    other, third = (CASES[name](seed=seed)[0] for seed in (1, 2))
    with unchanged(network, inputs, labels), unchanged(other), unchanged(third):
        everything(network, other, third, inputs, labels)[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_is_measured_in_single(kernel):
    networks = [residual(seed).bfloat16() for seed in range(3)]
    inputs, labels = data(shape=(3, 4, 4))
    inputs = inputs.bfloat16()
    found = everything(*networks, inputs, labels)[kernel]()
    single = everything(*[network.float() for network in networks], inputs.float(), labels)[kernel]()
    assert repr(found) == repr(single)
    assert (found.radii if kernel == "basin_radius" else found.losses).dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
def test_data_that_are_not_finite_are_refused(kernel):
    inputs, labels = data()
    inputs[3, 2] = torch.nan
    with pytest.raises(ValueError, match="loss on these data is not finite; check inputs"):
        everything(dense(0), dense(1), dense(2), inputs, labels)[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_norm_in_training_mode_is_refused(kernel):
    inputs, labels = data(shape=(3, 4, 4))
    with pytest.raises(ValueError, match=r"norm is BatchNorm in training mode; call module.eval\(\)"):
        everything(residual(0).train(), residual(1), residual(2), inputs, labels)[kernel]()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda n, x, y: line(n, dense(1), x, y, points=1), "points is 1; give at least 2"),
        (lambda n, x, y: line(n, dense(1), x, y, limits=(1.0, 1.0)), "limits are .*the smaller first"),
        (lambda n, x, y: line(n, dense(1), x, y, limits=(0.0, torch.inf)), "limits are .*finite"),
        (lambda n, x, y: line(n, dense(1, width=7), x, y), "end differs from the first network in .*same layers"),
        (lambda n, x, y: line(n, dense(1, depth=3), x, y), "end differs from the first network in"),
        (lambda n, x, y: line(n, dense(1, activation="tanh"), x, y), r"end differs .*Tanh\(\) against ReLU\(\)"),
        (lambda n, x, y: line(Network.stack([n, n]), dense(1), x, y), "a stack beside a stack"),
        (lambda n, x, y: line(n, dense(1), x, y, loss="hinge"), "loss is 'hinge'"),
        (lambda n, x, y: line(n, dense(1), x, y + 4), "labels has values outside"),
        (lambda n, x, y: line(n, dense(1), x[:0], y[:0]), "inputs is empty"),
        (lambda n, x, y: line(n, dense(1), x, y, chunk_size=0), "chunk_size is 0"),
        (lambda n, x, y: plane(n, dense(1), dense(1), x, y), "lie on one line"),
        (lambda n, x, y: plane(n, n, dense(1), x, y), "lie on one line"),
        (lambda n, x, y: plane(n, dense(1), n, x, y), "lie on one line"),
        (lambda n, x, y: plane(n, dense(1), blended((n, dense(1)), (-0.7, 1.7)), x, y), "use line"),
        (lambda n, x, y: plane(n, dense(1), dense(2, width=7), x, y), "second differs from the first network"),
        (lambda n, x, y: plane(n, dense(1), dense(2), x, y, points=1), "points is 1"),
        (lambda n, x, y: plane(n, dense(1), dense(2), x, y, margin=-0.1), "margin is -0.1"),
        (lambda n, x, y: plane(*[Network.stack([n, dense(1)])] * 3, x, y), "origin is a stack; .*stack.each"),
        (lambda n, x, y: surface(n, x, y, points=1), "points is 1"),
        (lambda n, x, y: surface(n, x, y, radius=0.0), "radius is 0.0; it must be positive"),
        (lambda n, x, y: surface(n, x, y, directions=[{}, {}]), "directions are not two of the network's shape"),
        (lambda n, x, y: surface(n, x, y, directions=filter_normalized_directions(n, 1)), "directions are not two"),
        (lambda n, x, y: filter_normalized_directions(n, 0), "count is 0"),
        (lambda n, x, y: filter_normalized_directions(nn.BatchNorm1d(5).eval()), "no weights of two axes"),
        (lambda n, x, y: basin_radius(n, x, y, increase=0.0), "increase is 0.0; it must be positive"),
        (lambda n, x, y: basin_radius(n, x, y, increase=math.nan), "increase is nan"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1e-15), "lost in the rounding of the loss"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, directions=0), "directions is 0"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, largest=-1.0), "largest is -1.0"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, tolerance=0.0), "tolerance is 0.0"),
        (lambda n, x, y: basin_radius(blended((n,), (0,)), x, y, increase=1.0), "largest is not given.*all zero"),
    ],
)
def test_what_can_not_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(dense(), *data())
