"""How far trained networks lie apart, and a schedule that dies, for the tests of several modules."""

import math

import torch

from genlib.train import Stop

TEN_STEPS = Stop(steps=10, every=10)


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Killed(Exception):
    pass


class Fading:
    """A schedule that counts its calls and dies at the `limit`th."""

    calls, limit = 0, math.inf

    def __call__(self, epoch):
        self.calls += 1
        if self.calls > self.limit:
            raise Killed
        return 0.9**epoch

    def __repr__(self):
        return "0.9 ** epoch"
