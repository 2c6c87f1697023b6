"""What every norm keeps to: stacks, types, no host read, nothing touched, refusals by name."""

import copy

import pytest
import torch
from cases import HostReads, drawn, unchanged
from norms_cases import Block
from torch import nn
from torch.nn.utils import prune

from genlib import models, norms
from genlib.network import Network

START = drawn(Block(), 7)
MEASURES = {
    "frobenius": norms.frobenius_norms,
    "group": lambda n: norms.group_norms(n, 2, 1),
    "spectral": lambda n: norms.spectral_norms(n, input_shape=(3, 6, 6)),
    "stable rank": lambda n: norms.stable_ranks(n, input_shape=(3, 6, 6)),
    "path": lambda n: norms.log_path_norm(n, input_shape=(3, 6, 6)),
    "distance": lambda n: norms.distances(n, START),
}


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "distance"])
def test_a_stack_gives_one_value_a_model(name):
    stacked = [drawn(Block(), seed) for seed in range(3)]
    each = torch.stack([MEASURES[name](block) for block in stacked])
    torch.testing.assert_close(MEASURES[name](Network.stack(stacked)), each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_the_network_and_the_random_state_are_left_as_they_were(name):
    block = drawn(Block())
    with unchanged(block):
        first = MEASURES[name](block)
        assert torch.equal(first, MEASURES[name](Network.of(block)))
    assert not first.requires_grad


@pytest.mark.parametrize("name", MEASURES)
def test_float64_stays_and_half_is_upcast(name):
    block = drawn(Block())
    if name != "distance":
        assert MEASURES[name](copy.deepcopy(block).double()).dtype == torch.float64
        half = copy.deepcopy(block).to(torch.bfloat16)
        torch.testing.assert_close(MEASURES[name](half), MEASURES[name](copy.deepcopy(half).float()))


def test_weights_alone_are_read_without_a_host_read():
    network = Network.of(drawn(Block()))
    for name in ("frobenius", "group", "path"):
        with HostReads() as reads:
            MEASURES[name](network)
        assert reads.count == 0


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("shift", torch.full((3,), torch.inf))

    def forward(self, x):
        return self.layer(x) + self.shift


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x))


def shared():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


REFUSED = {
    "training mode": (lambda: norms.frobenius_norms(Block()), "BatchNorm in training mode"),
    "run twice": (lambda: norms.frobenius_norms(Tied()), "layer runs more than once"),
    "tied": (lambda: norms.frobenius_norms(shared()), r"0\.weight and 1\.weight are one tied weight"),
    "layer norm": (
        lambda: norms.frobenius_norms(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))),
        "1 is of type LayerNorm",
    ),
    "pruned": (
        lambda: norms.frobenius_norms(prune.identity(nn.Linear(3, 3), "weight")),
        "the weight of the module is computed from other tensors.*prune.remove",
    ),
    "no statistics": (
        lambda: norms.frobenius_norms(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
        ),
        "1 keeps no running statistics",
    ),
    "no layer": (lambda: norms.frobenius_norms(nn.ReLU()), "no layer with weights"),
    "shape": (
        lambda: norms.spectral_norms(drawn(Block()), input_shape=(4, 5, 5)),
        r"input_shape \(4, 5, 5\) does not fit",
    ),
    "path shape": (
        lambda: norms.path_norm(drawn(Block()), input_shape=(4, 5, 5)),
        r"input_shape \(4, 5, 5\) does not fit",
    ),
    "negative shape": (lambda: norms.path_norm(drawn(Block()), input_shape=(3, -1, 5)), "positive whole numbers"),
    "channels": (lambda: norms.conv_norm(nn.Conv2d(3, 3, 3), (2, 5, 5)), "takes 3 channels"),
    "kernel": (lambda: norms.conv_norm(nn.Conv2d(3, 3, 7), (3, 5, 5)), "does not fit the convolution"),
    "not a convolution": (lambda: norms.conv_norm(nn.Linear(3, 3), (3,)), "convolution is a Linear"),
    "rtol": (lambda: norms.spectral_norms(drawn(Block()), input_shape=(3, 5, 5), rtol=0.0), "rtol is 0.0"),
    "p": (lambda: norms.group_norms(drawn(Block()), 0.5, 1), "p is 0.5"),
    "path p": (lambda: norms.path_norm(drawn(Block()), input_shape=(3, 5, 5), p=0), "p is 0"),
    "constant": (lambda: norms.path_norm(Shifted(), input_shape=(3,)), "a constant that is not finite"),
    "softplus": (
        lambda: norms.path_norm(nn.Sequential(nn.Linear(3, 3), nn.Softplus()), input_shape=(3,)),
        r"the operation _1 \(Softplus\) has no known paths",
    ),
    "zeros": (
        lambda: norms.stable_ranks(
            nn.utils.skip_init(nn.Linear, 3, 3).apply(lambda m: nn.init.zeros_(m.weight)), input_shape=(3,)
        ),
        "no weight other than zero",
    ),
    "other layers": (
        lambda: norms.distances(models.mlp(3, 2, width=4), models.mlp(3, 2, width=5)),
        "initial differs from network at the layer 1",
    ),
    "norm": (lambda: norms.distances(drawn(Block()), drawn(Block()), norm="nuclear"), "norm 'nuclear' is unknown"),
    "no input_shape": (
        lambda: norms.distances(drawn(Block()), drawn(Block()), norm="spectral"),
        "input_shape is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
