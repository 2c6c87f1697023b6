"""The shapes at which convolutions work, from a pass that a forward may do anything in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import drawn, unchanged
from torch import nn

from genlib import norms
from genlib.network import Network
from genlib.network.shapes import layer_input_shapes


class Idiom(nn.Module):
    def __init__(self, before, after=None):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.before, self.after = before, after or (lambda self, x: x)
        self.mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        x = self.before(self, x)
        x = self.after(self, torch.relu(self.conv(x)))
        return self.head(x.mean((2, 3)))


def counted(self, x):
    self.passes += 1
    return x


IDIOMS = {
    "plain attribute": (lambda self, x: x - self.mean,),
    "tensor in forward": (lambda self, x: x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1),),
    "coordinates": (lambda self, x: x + torch.linspace(-1, 1, 6),),
    "a look at values": (lambda self, x: x, lambda self, x: 2 * x if x.mean() > 0 else x),
    "a division by a value": (lambda self, x: x, lambda self, x: x / (1 + x.max().item())),
    "numpy": (lambda self, x: x, lambda self, x: torch.from_numpy(x.detach().numpy())),
    "resized": (lambda self, x: F.interpolate(x, scale_factor=2),),
    "state": (counted,),
    "chance": (lambda self, x: F.dropout(x, 0.5),),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_a_pass_of_zeros_finds_the_shapes_and_leaves_all_as_it_was(name):
    network = drawn(Idiom(*IDIOMS[name]))
    side = 12 if name == "resized" else 6
    with unchanged(network):
        assert layer_input_shapes(Network.of(network), (3, 6, 6)) == {"conv": (3, side, side)}
    alone = norms.conv_norm(network.conv, (3, side, side)).value
    torch.testing.assert_close(norms.spectral_norms(network, input_shape=(3, 6, 6))[0], alone)
    stack = Network.stack([network, network])
    assert layer_input_shapes(stack, (3, 6, 6)) == {"conv": (3, side, side)}


def test_half_precision_runs_in_full():
    network = copy.deepcopy(drawn(Idiom(lambda self, x: x))).bfloat16()
    assert layer_input_shapes(Network.of(network), (3, 6, 6)) == {"conv": (3, 6, 6)}
    assert network.conv.weight.dtype == torch.bfloat16


def test_whole_numbers_are_tried_where_others_fail():
    class Letters(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(5, 3, 2)

        def forward(self, x):
            return self.conv(F.one_hot(x, 5).transpose(1, 2).float()).mean(2)

    assert layer_input_shapes(Network.of(Letters()), (7,)) == {"conv": (5, 7)}


class Runs(nn.Module):
    """A convolution run in a loop that torch.fx can't follow."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.run = nn.Conv2d(3, 3, 3, padding=1), run

    def forward(self, x):
        return self.run(self.conv, x) if float(x.sum()) > -1e30 else x


class Dense(Runs):
    def __init__(self, run):
        super().__init__(run)
        self.conv = nn.Linear(6, 6)


REFUSED = {
    "twice": (Runs, lambda conv, x: conv(conv(x)), "conv runs more than once"),
    "at two sizes": (Runs, lambda conv, x: conv(x) + conv(x[:, :, ::2, ::2]).mean(), "conv runs more than once"),
    "never": (Runs, lambda conv, x: x, "conv doesn't run on zeros of input_shape"),
    "past the layer": (Runs, lambda conv, x: F.conv2d(x, conv.weight), "conv doesn't run on zeros of input_shape"),
    "unbatched": (Runs, lambda conv, x: conv(x[0]), r"conv runs on a tensor of shape \(3, 6, 6\), which isn't a batch"),
    "a dense layer twice": (Dense, lambda layer, x: layer(layer(x)), "conv runs more than once"),
    "a dense layer never": (Dense, lambda layer, x: x, "conv doesn't run on zeros of input_shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_once_on_images_is_refused(name):
    kind, run, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^network: {message}"):
        norms.spectral_norms(kind(run), input_shape=(3, 6, 6))


def test_an_unbatched_convolution_that_is_traced_is_refused():
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.conv(x.squeeze(0))

    for norm in (norms.spectral_norms, norms.path_norm):
        with pytest.raises(ValueError, match=r"conv.* batch of images"):
            norm(Unbatched(), input_shape=(3, 6, 6))


def test_a_second_argument_is_refused_where_torch_fx_cannot_see_it():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose2d(3, 3, 3, stride=2)

        def forward(self, x):
            return self.conv(x, [10, 10]) if float(x.sum()) > -1e30 else x

    with pytest.raises(ValueError, match="conv is called with more than its input"):
        norms.spectral_norms(Sized(), input_shape=(3, 4, 4))


def test_a_network_on_the_meta_device_stays_there():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2)).to("meta")
    params = dict(module.named_parameters())
    network = Network(module, params, {}, None, ())
    assert layer_input_shapes(network, (3, 8, 9)) == {"0": (3, 8, 9), "2": (4, 6, 7)}
