"""The peak of the memory that a kernel takes, and what each is allowed: so many times the parameters, and a chunk."""

import warnings
from collections.abc import Iterator

import torch
from kernels import SHAPE, convolutional, kernels
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import curvature, sensitivity

__all__ = ["BOUNDS", "Live", "eigenvalue_memory", "entries", "jacobian_memory", "measured", "peak"]

# At most so many times the parameters, and so many times the activations of one chunk: what all layers put out for it.
# The look at derivatives takes float64: a copy and a gradient are four times the parameters of float32, a second
# derivative seven. Of 8 draws one lies on the device at a time, or as many as fit in 64 MB; of 6 random vectors a third
# is kept, and all for a trace; of `top_eigenvalues` k = 3 are asked for, 2k + 14 times the parameters and the graph of
# the gradient.
BOUNDS = {
    "weights alone": {
        **dict.fromkeys(("frobenius_norms", "group_norms", "path_norm"), (2, 0)),
        **dict.fromkeys(("spectral_norms", "stable_ranks"), (3, 0)),
        "distances": (4, 0),
    },
    "outputs": {
        **dict.fromkeys(("output_margins", "transitions", "last_features"), (2, 1)),
        **dict.fromkeys(("mixup_error", "function_distance"), (2, 1)),
        "local_complexity": (2, 2),
        **dict.fromkeys(("layer_margins", "input_margins"), (3, 1)),
        "normalized_margins": (3, 1),
        **dict.fromkeys(("jacobian_norms", "jacobian_norms, spectral", "mean_squared_jacobian_norm"), (3, 3)),
    },
    "perturbed weights": {
        "expected_sharpness": (2, 1),
        "expected_sharpness by weights": (3, 1),
        "largest_sigma": (2, 1),
        "sharpness_kl": (5, 1),
        "pac_bayes_bound": (8, 1),
        **dict.fromkeys(("worst_case_sharpness", "keskar_sharpness"), (6, 2)),
        "largest_radius": (7, 2),
        "sam_sharpness": (4, 2),
    },
    "posterior": {"learning_coefficient": (26, 4)},  # of 2 chains
    "curvature": {
        "relative_flatness": (2, 1),
        "trace": (4, 3),
        "gradient_variance": (4, 4),
        **dict.fromkeys(("hessian_vector_product", "batch_sharpness"), (8, 4)),
        "trace by vectors": (10, 4),
        "frobenius_norm": (10, 4),
        "gauss_newton_error": (11, 6),
        "spectral_density": (13, 4),
        **dict.fromkeys(("top_eigenvalues", "log_basin_volume"), (20, 4)),
    },
}


class Live(TorchDispatchMode):
    """Follows every tensor that is made, and keeps the largest sum of bytes that lived at once."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}  # some of them dead by now
        self.total = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        output = function(*args, **(kwargs or {}))
        for storage in _storages(output):
            if storage._cdata not in given:
                self.total += storage.nbytes() - self.made.get(storage._cdata, (None, 0))[1]
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if self.total > self.peak:  # only then does it matter which of them are dead
            self.made = {key: kept for key, kept in self.made.items() if not kept[0].expired()}
            self.total = sum(size for _, size in self.made.values())
            self.peak = max(self.peak, self.total)
        return output


def _storages(tree) -> Iterator[UntypedStorage]:
    if isinstance(tree, Tensor):
        yield tree.untyped_storage()
    elif isinstance(tree, tuple | list | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _storages(part)


def peak(function, *arguments) -> int:
    """The largest number of bytes that lived at once of what the function made."""
    with Live() as live:
        function(*arguments)
    return live.peak


def measured(name: str) -> tuple[float, float]:
    """The peak in parameters of a wide network on few data, and in activations of a small one on much."""
    kernel = kernels()[name]
    network, initial = _wide(0), _wide(1)
    inputs, labels = _data(network, 4)
    parameters = peak(kernel, network, initial, inputs, labels) / sum(p.nbytes for p in network.parameters())
    network, initial = convolutional(0), convolutional(1)
    inputs, labels = _data(network, 2000)
    return parameters, peak(kernel, network, initial, inputs, labels) / _activations(network, inputs)


def eigenvalue_memory(k: int, chunk_size: int | None = None) -> float:
    """The peak of `top_eigenvalues` in parameters of a wide network on four samples, with restarts."""
    network = _wide(0)
    calls = {"chunk_size": chunk_size, "max_matvecs": 3 * k + 30, "tolerance": 1e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what doesn't converge so soon
        taken = peak(lambda: curvature.top_eigenvalues(network, *_data(network, 4), k, **calls))
    return taken / sum(p.nbytes for p in network.parameters())


def jacobian_memory(of: str | tuple[str, ...], norm: str, classes: int) -> float:
    """The peak of `jacobian_norms` in megabytes (2²⁰ bytes) on a small network of many classes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, classes))
    return peak(lambda: sensitivity.jacobian_norms(network, torch.randn(4, 16), of=of, norm=norm)) / 2**20


def entries() -> list[dict]:
    """What was measured of every kernel beside what is said of it, for the record."""
    rows = []
    for group, bounds in BOUNDS.items():
        for name, at_most in bounds.items():
            found = [round(value, 2) for value in measured(name)]
            rows.append({"group": group, "kernel": name, "measured": found, "at_most": list(at_most)})
    return rows


def _wide(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = [nn.Linear(72, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(600, 3))


@torch.no_grad()
def _data(network: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return inputs, network(inputs).argmax(-1)


@torch.no_grad()
def _activations(network: nn.Module, inputs: Tensor) -> int:
    sizes = []
    layers = [part for part in network.modules() if not list(part.children())]
    hooks = [layer.register_forward_hook(lambda _, x, output: sizes.append(output.nbytes)) for layer in layers]
    network(inputs)
    for hook in hooks:
        hook.remove()
    return sum(sizes)
