"""Ways to write what is linear, piecewise linear or neither, as functions of images [n, 4, 4, 3]."""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["BENT", "CONSTANT", "LINEAR", "MEETING", "NEITHER", "Between"]


class Between(nn.Module):
    """A convolution of images [n, 2, 5, 4], a function of what it returns, a relu and a dense layer."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 4, 2), function
        self.head = nn.Linear(function(torch.zeros(1, 4, 4, 3)).numel(), 3)

    def forward(self, x):
        return self.head(torch.relu(self.function(self.conv(x)).flatten(1)))


def _counted(x):
    n, c, h, w = x.shape
    return x.reshape(n, c * h, w)


def _asserted(x):
    assert x.dim() == 4 and x.shape[1] == 4, f"{x.shape} is no batch of images"
    assert len(x.shape) in (3, 4)
    assert not x.ndim > 4
    torch._assert(x.size(2) == 4, "four rows")
    return 2 * x


def _asserted_of_data(x):
    assert (x > -math.inf).all()
    return 2 * x


def _zipped(x):
    first, second = x.chunk(2, 1)
    return torch.stack((second, first), 1)


_MATRIX = torch.linspace(-1, 1, 15).view(3, 5)
_MASK = torch.arange(3) % 2 == 0
_ORDER = torch.tensor([2, 0, 1])
_KERNEL = torch.tensor([[0.25, -0.5], [0.0, 2.0]]).expand(4, 1, 2, 2)


class Sized(nn.Module):
    """Buffers of its own, and arithmetic on them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.linspace(-2, 1, 4).view(4, 1, 1))

    def forward(self, x):
        return x * self.scale


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("like", torch.zeros(()))

    def forward(self, x):
        return x.to(self.like).to(self.like.dtype).to(dtype=x.dtype, device=x.device).type_as(self.like).to(x)


LINEAR = {
    # Shapes
    "view(x.size(0))": lambda x: x.view(x.size(0), -1),
    "view(x.shape[0])": lambda x: x.view(x.shape[0], -1),
    "reshape(len(x))": lambda x: x.reshape(len(x), -1),
    "shape unpacked": _counted,
    "first sizes": lambda x: x.reshape(*x.shape[:2], -1),
    "shape multiplied": lambda x: x.reshape(-1, math.prod((4, 4)) * x.size(-1)),
    "view_as": lambda x: x.flatten(1).view_as(x),
    "torch.reshape": lambda x: torch.reshape(x, (-1, 16, 3)),
    "flatten, unflatten": lambda x: torch.flatten(x, 1).unflatten(1, (6, 8)),
    "shuffle by hand": lambda x: x.view(len(x), 2, 2, 4, 3).transpose(1, 2).contiguous().view(len(x), 4, 4, 3),
    "transpose": lambda x: torch.transpose(x, 1, 2).swapaxes(2, 3),
    "permute": lambda x: torch.permute(x, (0, 2, 3, 1)).contiguous(),
    "movedim": lambda x: torch.movedim(x, 1, -1),
    "moveaxis": lambda x: x.moveaxis(1, 2),
    "mT": lambda x: x.mT.flatten(1),
    "squeeze": lambda x: torch.squeeze(torch.unsqueeze(x, 2), 2)[:, None],
    "chunk": _zipped,
    "each chunk": lambda x: torch.cat([i * part for i, part in enumerate(x.chunk(2, 1))], 1),
    "chunks backwards": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.split(x, [1, 3], dim=1)[1],
    "tensor_split": lambda x: x.tensor_split(2, 1)[0],
    "unbind": lambda x: torch.unbind(x, 1)[2],
    "select, narrow": lambda x: x.select(1, 2).narrow(1, 1, 2),
    "slices": lambda x: x[:, ::2, 1:, [0, 2]],
    "an index of constants": lambda x: x[:, :, :, _ORDER],
    "a mask of constants": lambda x: x[:, :, :, _MASK],
    "index_select": lambda x: torch.index_select(x, 3, _ORDER),
    "gather": lambda x: x.gather(3, _ORDER.expand_as(x)),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: x.tile(1, 1, 1, 2),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, 2, 1),
    "roll": lambda x: torch.roll(x, 1, 3),
    "flip": lambda x: x.flip(3),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "x.unfold": lambda x: x.unfold(2, 2, 1),
    "F.unfold": lambda x: F.unfold(x, 2, padding=1),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :6], (3, 4), 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "triu": lambda x: x.triu(),
    "pad": lambda x: F.pad(x, (1, 0, 2, -1)),
    "reflect": lambda x: F.pad(x, (1, 1, 0, 2), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1, 0, 2), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 0, 2), mode="circular"),
    "a layer that reflects": nn.ReflectionPad2d(1),
    "shape asserted": _asserted,
    "data asserted": _asserted_of_data,
    # The same numbers
    "clone": lambda x: x.clone().to(x.dtype).type_as(x).to(x),
    "cast": Cast(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout by position": lambda x: F.dropout2d(x, 0.5, False),
    # Sums and averages
    "sum": lambda x: torch.sum(x, (2, 3)),
    "sum of an axis": lambda x: x.sum(dim=1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "sum of a stack": lambda x: torch.stack([x, x.flip(1)]).sum(0),
    "mean of a stack": lambda x: torch.stack((x, x.flip(1)), dim=0).mean(dim=0),
    "mean": lambda x: torch.mean(x, dim=(2, 3)),
    "mean of means": lambda x: x.mean(-1).mean(-1),
    "global average": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "average pool": lambda x: F.avg_pool2d(x, 2, 1, padding=1),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, (7, 5), mode="bilinear"),
    "bilinear to the corners": lambda x: F.interpolate(x, scale_factor=(1.5, 2), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, size=6, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(3, 2), mode="area"),
    "antialiased": lambda x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True),
    "upsampling layer": nn.Upsample(scale_factor=2, mode="bilinear"),
    "cat": lambda x: torch.cat([x[:, 2:], x.flip(1)], 1),
    "stack": lambda x: torch.stack([x[:, :2], x[:, 2:]], 1),
    "hstack": lambda x: torch.hstack((x, torch.zeros_like(x))),
    "cat of zeros": lambda x: torch.cat([x, x.new_zeros(len(x), 2, 4, 3)], 1),
    "methods": lambda x: x.add(torch.roll(x, 1, 1)).sub(x.roll(2, 1)),
    "sum of a list": lambda x: sum([x, torch.roll(x, 1, 3)]),
    # Multiples
    "minus": lambda x: -x,
    "neg": lambda x: torch.neg(x).neg().negative(),
    "times": lambda x: 0.3 * x * -2,
    "mul": lambda x: torch.mul(x, 3).mul(0.5),
    "over": lambda x: x / 4,
    "over a size": lambda x: x / math.sqrt(x.shape[1]),
    "div": lambda x: torch.div(x, 0.2).div(3),
    "times nothing": lambda x: torch.cat([x * 0, x], 1),
    "mul_": lambda x: x.mul_(0.5).div_(3).neg_(),
    "*=": lambda x: _times(x),
    "a statement": lambda x: _halved(x),
    "times a buffer": Sized(),
    "times a constant": lambda x: x * torch.tensor([0.0, -2.0, 1e-3]).to(x) / torch.tensor(3.0).to(x),
    "times a mask": lambda x: x * _MASK,
    "matmul": lambda x: x @ _MATRIX.to(x),
    "constant @ x": lambda x: _MATRIX.to(x).mT @ x.mT,
    "linear": lambda x: F.linear(x, _MATRIX.mT.to(x)),
    "blurred": lambda x: F.conv2d(x, _KERNEL.to(x), padding=1, groups=4),
}


def _times(x):
    x *= 0.5
    x /= 3
    return x


def _less(x):
    x -= 1
    return x


def _halved(x):
    x.mul_(0.5)
    return x


CONSTANT = {
    "plus": lambda x: x + 1,
    "minus half": lambda x: x - 0.5,
    "less": lambda x: 2 - x,
    "rsub": lambda x: torch.rsub(x, 1),
    "add_": lambda x: x.add_(0.3),
    "-=": lambda x: _less(x),
    "add": lambda x: torch.add(x, 2),
    "plus a constant": lambda x: x + torch.tensor([0.0, -2.0, 1.0]).to(x),
    "plus a wider constant": lambda x: x[:, :1] - torch.linspace(-1, 1, 4).to(x).view(4, 1, 1),
    "plus ones": lambda x: x + torch.ones_like(x),
}
MEETING = {  # two paths from one number to another, or none that are known
    "x + x": lambda x: x + x,
    "less its mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "diff": lambda x: torch.diff(x, dim=2),
    "masked by constants": lambda x: x.masked_fill(_MASK, 0.0),
    "where of constants": lambda x: torch.where(_MASK, x, 2 * x),
    "einsum": lambda x: torch.einsum("nchw,wv->nchv", x, _MATRIX.to(x)),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(4).to(x), torch.full((4,), 3.0).to(x)),
    "alpha": lambda x: torch.add(x, x.flip(1), alpha=0.5),
    "grid": lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2).to(x).expand(len(x), -1, -1, -1), align_corners=False),
}


def _code(*codes):
    return lambda x: [code(x) for code in codes]


def _places(x, axes):
    return x.flatten(axes).argmax(axes)


def _unpacked(x):
    values, _ = x.max(-1)
    return values


def _bent_in_place(x):
    x.add_(1)
    x *= 2
    F.relu_(x)
    return x


# With each what changes with the piece, unit by unit; a unit may count more than once.
BENT = {
    "relu": (lambda x: torch.relu(x), _code(lambda x: x > 0)),
    "relu_": (lambda x: F.relu_(x), _code(lambda x: x > 0)),
    "clamp_": (lambda x: x.clamp_(min=-0.2), _code(lambda x: x > -0.2)),
    "clamp": (lambda x: torch.clamp(x, -0.5, max=0.3), _code(lambda x: x > -0.5, lambda x: x > 0.3)),
    "clamp_min": (lambda x: x.clamp_min(0), _code(lambda x: x > 0)),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.4), _code(lambda x: x > 0.4)),
    "clamp between constants": (lambda x: x.clamp(min=_MATRIX[:, 1].to(x)), _code(lambda x: x > _MATRIX[:, 1].to(x))),
    "abs": (lambda x: abs(x), _code(lambda x: x > 0)),
    "leaky": (lambda x: F.leaky_relu(x, 0.3), _code(lambda x: x > 0)),
    "leaky_": (lambda x: F.leaky_relu_(x, 0.3), _code(lambda x: x > 0)),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.2]).to(x)), _code(lambda x: x > 0)),
    "threshold": (lambda x: F.threshold(x, 0.1, 2.0), _code(lambda x: x > 0.1)),
    "softshrink": (lambda x: F.softshrink(x, 0.2), _code(lambda x: x > 0.2, lambda x: x > -0.2)),
    "hardshrink": (lambda x: F.hardshrink(x), _code(lambda x: x > 0.5, lambda x: x > -0.5)),
    "softshrink as a layer": (nn.Softshrink(0.3), _code(lambda x: x > 0.3, lambda x: x > -0.3)),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), _code(lambda x: x > x.flip(1))),
    "minimum with ones": (lambda x: torch.minimum(x, torch.ones_like(x)), _code(lambda x: x > 1)),
    "max of two": (lambda x: torch.max(x, -0.5 * x), _code(lambda x: x > -0.5 * x)),
    "min of two": (lambda x: x.min(x.roll(1, 2)), _code(lambda x: x > x.roll(1, 2))),
    "max": (lambda x: x.max(-1)[0], _code(lambda x: x.argmax(-1))),
    "maxout": (lambda x: torch.stack([x, -x]).max(0)[0], _code(lambda x: x < 0)),
    "statements": (lambda x: _bent_in_place(x), _code(lambda x: x > -1)),
    "max unpacked": (_unpacked, _code(lambda x: x.argmax(-1))),
    "torch.min": (lambda x: torch.min(x, dim=2, keepdim=True).values, _code(lambda x: x.argmin(2))),
    "amax": (lambda x: x.amax((2, 3)), _code(lambda x: _places(x, 2))),
    "amin": (lambda x: torch.amin(x, dim=1, keepdim=True), _code(lambda x: x.argmin(1))),
    "adaptive maximum": (lambda x: F.adaptive_max_pool2d(x, 1), _code(lambda x: _places(x, 2))),
    "pool with places": (
        lambda x: F.max_pool2d(x, (4, 3), return_indices=True)[0],
        _code(lambda x: _places(x, 2)),
    ),
    "sort": (lambda x: x.sort(1)[0], _code(lambda x: x.argsort(1))),
    "topk": (lambda x: x.topk(2, dim=1).values, _code(lambda x: x.topk(2, dim=1).indices)),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0), _code(lambda x: x < 0)),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), _code(lambda x: x > 0)),
    "x.where": (lambda x: x.where(x.ge(0.1), -x), _code(lambda x: x >= 0.1)),
    "times a comparison": (lambda x: x * (x > 0), _code(lambda x: x > 0)),
    "two comparisons": (
        lambda x: x * ((x > -0.5) & ~(x.gt(0.5))).to(x.dtype),
        _code(lambda x: x > -0.5, lambda x: x > 0.5),
    ),
}

# With each the operation that says so, and its kind.
NEITHER = {
    "x * x": (lambda x: x * x, "mul", "smooth"),
    "x * relu(x)": (lambda x: x * torch.relu(x), "mul", "smooth"),
    "x @ x": (lambda x: x @ x.mT, "matmul", "smooth"),
    "einsum": (lambda x: torch.einsum("nchw,nchw->nchw", x, x), "einsum", "smooth"),
    "linear of data": (lambda x: F.linear(x, x[0, 0]), "linear", "smooth"),
    "over its norm": (lambda x: x / x.norm(), "truediv", "smooth"),
    "1 / x": (lambda x: 1 / x, "truediv", "smooth"),
    "floor of a ratio": (lambda x: torch.div(x, 2, rounding_mode="floor"), "div", "smooth"),
    "normalized": (lambda x: F.normalize(x), "normalize", "unknown"),
    "rounded": (lambda x: x.round(), "round_1", "unknown"),
    "detached": (lambda x: x.detach(), "detach", "unknown"),
    "data": (lambda x: x.data, "getattr_1", "unknown"),
    "squared": (lambda x: x**2, "pow_1", "unknown"),
    "exp": (lambda x: x.exp(), "exp", "unknown"),
    "to whole numbers": (lambda x: x.to(torch.long).double(), "to", "unknown"),
    "long": (lambda x: x.long() * 0.5, "long", "unknown"),
    "sum of whole numbers": (lambda x: x.sum(1, dtype=torch.long) * 0.5, "sum_1", "unknown"),
    "type of an index": (lambda x: x.type_as(_ORDER) * 0.5, "type_as", "unknown"),
    "where it is largest": (lambda x: x + x.max(1, keepdim=True)[1], "getitem", "unknown"),
    "places of the largest": (lambda x: x + x.max(1, keepdim=True).indices, "getattr_1", "unknown"),
    "an index of data": (lambda x: x[:, :, :, x.argmax(3)[0, 0]], "getitem_1", "unknown"),
    "gathered by data": (lambda x: x.gather(3, x.argsort(3)), "gather", "unknown"),
    "rolled by data": (lambda x: torch.roll(x, x.argmax().item(), 1), "argmax", "unknown"),
    "masked by data": (lambda x: torch.where(x.bool(), x, 0.0), "where", "unknown"),
    "dropout at work": (lambda x: F.dropout(x, 0.5), "dropout", "unknown"),
    "noise": (lambda x: x + torch.rand_like(x), "rand_like", "unknown"),
    "copied into zeros": (lambda x: _copied(x) * x, "copy_", "unknown"),
    "set into zeros": (lambda x: _set(x) * x, "setitem", "unknown"),
    "into another": (lambda x: torch.add(x, 1, out=torch.zeros(1).to(x)), "add", "unknown"),
    "maximum of all": (lambda x: x - x.max(), "max_1", "unknown"),
    "equal": (lambda x: x * (x == 0), "eq", "unknown"),
}


def _copied(x):
    zeros = torch.zeros_like(x)
    zeros[:, :2].copy_(x[:, :2])
    return zeros


def _set(x):
    zeros = torch.zeros(1, 4, 4, 3)
    zeros[:, :2] = x[:1, :2]
    return zeros
