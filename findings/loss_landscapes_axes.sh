#!/usr/bin/env bash
# loss-landscapes 3.0.6 (with torch 2.13.0): the loss is not taken where the call and its documentation say.
#
# Expected: random_line(model, metric, distance=d) goes up to the distance d, so that twice the d goes twice as far;
#   planar_interpolation(a, b, c, metric, steps=n) fills a regular n x n grid of the plane, one column for each step.
# Seen: random_line goes |w| / d far, |w| the norm of the weights: distance=2 goes half as far as distance=1, and
#   distance=0.1 goes ten norms away. In the grid, the even rows hold steps 1 to n and the odd rows steps 0 to n - 1:
#   every other row is one step off, so that down a column the second coordinate alternates. Of the three models' own
#   places the grid has c's alone. Nothing is raised.
# Why it matters: a flat-looking line may be one that hardly moved, and a run meant to stay close may be far away. The
#   surface that is drawn from the grid is no surface of the loss: a bowl that depends on the second coordinate alone
#   gets a ripple along the first, 0.44 high here where the truth is level, and a reader takes it for ruggedness. A
#   metric that returns where the weights are, in place of the loss, shows both.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 loss-landscapes==3.0.6

"$folder/env/bin/python" -W ignore - <<'PY'
import copy

import numpy as np
import torch
from loss_landscapes import planar_interpolation, random_line
from loss_landscapes.metrics.metric import Metric
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def flat(network):
    return torch.cat([w.detach().flatten() for w in network.parameters()])


class Moved(Metric):
    """How far the weights are from where they were, in norms of the latter."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def __call__(self, wrapper):
        return float((flat(wrapper.modules[0]) - self.start).norm() / self.start.norm())


class Place(Metric):
    """The two weights themselves."""

    def __call__(self, wrapper):
        return flat(wrapper.modules[0]).tolist()


network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
moved = Moved(flat(network).clone())
far = {}
for distance in (0.1, 0.5, 1.0, 2.0):
    line = random_line(network, moved, distance=distance, steps=5, deepcopy_model=True)
    far[distance] = float(line[-1])
    print(f"random_line(distance={distance}) ends {far[distance]:.4g} norms of the weights away")

origin, one, two = (nn.Linear(2, 1, bias=False) for _ in range(3))
with torch.no_grad():
    for layer, place in ((origin, [0.0, 0.0]), (one, [1.0, 0.0]), (two, [0.0, 1.0])):
        layer.weight.copy_(torch.tensor([place]))
grid = planar_interpolation(origin, one, two, Place(), steps=4, deepcopy_model=True)
print("planar_interpolation(steps=4), the places (a, b) that it visits, row by row:")
for row in grid:
    print("  ", "  ".join(f"({a:.2f}, {b:.2f})" for a, b in row))
bowl = grid[..., 1] ** 2
print(f"a loss of b^2 along its last column, where b = 1 is meant: {bowl[:, -1].tolist()}")

assert np.allclose([far[d] * d for d in far], 1.0)
steps = np.arange(4) / 4
assert np.allclose(grid[..., 0], steps[:, None])
assert np.allclose(grid[0::2, :, 1], steps + 0.25) and np.allclose(grid[1::2, :, 1], steps)
PY
