"""The Hessian's products, eigenvalues and trace against the peers, and what rests on all eigenvalues against these."""

import contextlib
import copy
import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from memory import eigenvalue_memory
from networks import BEYOND_FIRST, MLP, digits, trained_mlp
from scipy.sparse.linalg import LinearOperator, eigsh
from timing import Row, medians
from torch import nn

from genlib import scale
from genlib.curvature import (
    gauss_newton_eigenvalues,
    hessian_vector_product,
    information_criteria,
    top_eigenvalues,
    trace,
)
from genlib.data import load
from genlib.estimates import Eigenpairs
from genlib.train import Stop, fit

__all__ = ["rows"]

CLASSES = 10
TOP, TOLERANCE = 10, 1e-5
SLOW = {"PyHessian": 1}  # repeats, where three take minutes
CNN_BEYOND_FIRST = (64 * 16 * 9 * 32 + 512 * 10) / (256 * 3 * 9 * 16 + 64 * 16 * 9 * 32 + 512 * 10)

Data = tuple[torch.Tensor, torch.Tensor]


def rows() -> list[Row]:
    """All rows of this file."""
    chosen = digits(1000)
    mlp = trained_mlp(), (chosen.inputs, chosen.labels), f"{MLP}, {len(chosen.labels)} samples"
    cnn = _cnn(500)
    return [
        _memory_row(30.0),
        _criteria_row(*mlp[:2], 300, 1.2),
        _trace_row(*mlp, 8.0),
        _trace_row(*cnn, 1.0),
        _product_row(*mlp, BEYOND_FIRST),
        _product_row(*cnn, CNN_BEYOND_FIRST),
        *_eigenvalue_rows(*mlp, BEYOND_FIRST, {"hessian-eigenthings": 2.0, "curvlinops": 1.3, "PyHessian": 2.0}),
        *_eigenvalue_rows(*cnn, CNN_BEYOND_FIRST, {"hessian-eigenthings": 2.0, "curvlinops": 1.3, "PyHessian": 4.0}),
    ]


def _cnn(samples: int) -> tuple[nn.Sequential, Data, str]:
    """Convolutions, whose weights need a product for every cotangent too, trained on digits in three equal colours."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, CLASSES)),
    ).to(scale.device())
    small = load("digits", train=samples, device=scale.device())

    def enlarged(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(images.view(-1, 1, 8, 8), (16, 16), mode="bilinear").repeat(1, 3, 1, 1)

    chosen = dataclasses.replace(small, inputs=enlarged(small.inputs), test_inputs=enlarged(small.test_inputs))
    network = fit(network, chosen, lr=0.02, batch_size=64, stop=Stop(accuracy=0.99, epochs=50)).module
    return network, (chosen.inputs, chosen.labels), f"conv16-pool-conv32-pool-dense, 3×16×16, {samples} samples"


def _memory_row(vectors: float) -> Row:
    """The memory of the ten largest eigenvalues on few samples, beyond the network, in vectors of parameters."""
    found = eigenvalue_memory(TOP)
    baseline = f"{vectors:.0f} vectors of parameters; in place of passes, vectors"
    case = f"memory: {TOP} of MLP 72-600-600-3, 4 samples"
    return Row("top_eigenvalues", case, baseline, vectors / found, 1.0, found, vectors)


def _criteria_row(network: nn.Sequential, data: Data, samples: int, times: float) -> Row:
    """Soft rank, TIC and evidence from one Gram matrix, and its eigenvalues alone."""
    inputs, labels = data[0][:samples], data[1][:samples]
    theirs, own, once = medians(
        lambda: gauss_newton_eigenvalues(network, inputs, labels),
        lambda: information_criteria(network, inputs, labels),
        torch.no_grad()(lambda: network(inputs)),
        repeats=3,
    )
    baseline = f"gauss_newton_eigenvalues alone, to be within {times} times"
    case = f"soft rank, TIC and evidence, {MLP}, {samples} samples"
    return Row("information_criteria", case, baseline, theirs / own, 1 / times, own / once, theirs / once)


def _product_row(network: nn.Sequential, data: Data, case: str, beyond_first: float, products: int = 10) -> Row:
    """A product on the graph that is kept, and on one that is built for it alone."""
    inputs, labels = data
    weights = dict(network.named_parameters())
    v = {name: torch.randn_like(w) for name, w in weights.items()}
    kept = hessian_vector_product(network, inputs, labels)

    def rebuilt() -> None:
        gradients = torch.autograd.grad(F.cross_entropy(network(inputs), labels), weights.values(), create_graph=True)
        torch.autograd.grad(gradients, weights.values(), list(v.values()))

    forward = torch.no_grad()(lambda: network(inputs))
    theirs, own, once = (
        seconds / products
        for seconds in medians(*(_repeated(function, products) for function in (rebuilt, lambda: kept(v), forward)))
    )
    limit = 2 + 4 * beyond_first
    kernel, baseline = "hessian_vector_product", "the same, the graph built anew"
    return Row(kernel, case, baseline, theirs / own, None, own / once, limit, passes_at_most=1.2 * limit)


def _repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            function()

    return repeated


def _eigenvalue_rows(
    network: nn.Sequential, data: Data, case: str, beyond_first: float, at_least: dict[str, float]
) -> Iterator[Row]:
    """The ten largest eigenvalues to a residual of 1e-5 of the largest: in time and products."""

    def ours() -> Eigenpairs:
        return top_eigenvalues(network, *data, TOP, tolerance=TOLERANCE)

    found, peers, case = ours(), _peers(network, data), f"{TOP} of {case}"
    limit = 2 + beyond_first + found.matvecs * (2 + 4 * beyond_first)
    own, once = medians(ours, torch.no_grad()(lambda: network(data[0])), repeats=3)
    passes = own / once
    for name, peer in peers.items():
        values: list = []
        theirs, own = medians(lambda: values.append(peer()), ours, repeats=SLOW.get(name, 3), warm_up=0)  # noqa: B023
        theirs_values = torch.as_tensor(np.array(values[-1], dtype=np.float32)).sort(descending=True).values
        apart = (theirs_values / found.values.cpu() - 1).abs().max().item()
        baseline = f"{name}, which differs by at most {apart:.0e}"
        yield Row("top_eigenvalues", case, baseline, theirs / own, at_least[name], passes, limit)
    products = _arpack_products(network, data)
    baseline = f"the {products} products of ARPACK, to our {found.matvecs}"
    yield Row("top_eigenvalues", case, baseline, products / found.matvecs, 1.0, passes, limit)


def _peers(network: nn.Sequential, data: Data) -> dict[str, Callable[[], object]]:
    """Each peer's ten largest eigenvalues; one that is not installed is left out, and said so."""
    makers = {"hessian-eigenthings": _eigenthings, "curvlinops": _curvlinops, "PyHessian": _pyhessian}
    peers = {}
    for name, make in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of their imports
                peers[name] = make(copy.deepcopy(network), data)
        except ImportError:
            print(f"{name} is not installed: no rows against it")
    return peers


def _eigenthings(network: nn.Sequential, data: Data) -> Callable[[], object]:
    """It takes as many steps as it is told: its default, 2k, doubled until its own residuals are small enough.

    The last of these runs alone is timed. For 30 steps, which would do here but which nobody knows before, take 3/4.
    """
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    def run(steps: int):
        operator = HessianOperator(network, [data], supervised_loss(nn.CrossEntropyLoss()))
        return lanczos(operator, k=TOP, max_iter=steps, tol=TOLERANCE, reorthogonalize=True, which="LA", seed=0)

    steps = 2 * TOP
    while ((found := run(steps)).residuals > TOLERANCE * found.eigenvalues.max()).any():
        steps *= 2
    return lambda: run(steps).eigenvalues.cpu()


def _curvlinops(network: nn.Sequential, data: Data) -> Callable[[], object]:
    from curvlinops import HessianLinearOperator

    def run():
        weights = list(network.parameters())
        operator = HessianLinearOperator(network, nn.CrossEntropyLoss(), weights, [data], check_deterministic=False)
        start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
        return eigsh(operator.to_scipy(), k=TOP, which="LA", tol=TOLERANCE, v0=start)[0]

    return run


def _pyhessian(network: nn.Sequential, data: Data) -> Callable[[], object]:
    """Which stops by the change of an eigenvalue, 1e-3, and is less accurate than the others."""
    from pyhessian import hessian

    def run():
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a leak that its graph makes
            module = hessian(network, nn.CrossEntropyLoss(), data=data, cuda=data[0].is_cuda)
            return module.eigenvalues(top_n=TOP)[0]

    return run


def _arpack_products(network: nn.Sequential, data: Data) -> int:
    """On our own products, from a random start."""
    product, count = _flat_product(network, data), itertools.count()
    size = sum(w.numel() for w in network.parameters())

    def matvec(v: np.ndarray) -> np.ndarray:
        next(count)
        return product(torch.from_numpy(v.astype(np.float32).ravel()).to(data[0].device)).cpu().numpy()

    start = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float32)
    eigsh(operator, k=TOP, which="LA", tol=TOLERANCE, v0=start)
    return next(count)


def _flat_product(network: nn.Sequential, data: Data) -> Callable[[torch.Tensor], torch.Tensor]:
    product, weights = hessian_vector_product(network, *data), dict(network.named_parameters())
    sizes = [w.numel() for w in weights.values()]

    def flat(v: torch.Tensor) -> torch.Tensor:
        parts = {name: part.view_as(w) for (name, w), part in zip(weights.items(), v.split(sizes), strict=True)}
        return torch.cat([part.flatten() for part in product(parts).values()])

    return flat


def _trace_row(network: nn.Sequential, data: Data, case: str, at_least: float, vectors: int = 20) -> Row:
    inputs, labels = data
    weights = list(network.parameters())
    frozen = copy.deepcopy(network).requires_grad_(False)
    first = next(i for i, layer in enumerate(network) if list(layer.parameters())) + 1
    cotangent = torch.ones(len(inputs), CLASSES, device=inputs.device)

    def hutchinson() -> None:
        gradients = torch.autograd.grad(F.cross_entropy(network(inputs), labels), weights, create_graph=True)
        total = 0.0
        for _ in range(vectors):
            signs = [2 * torch.randint_like(w, 2) - 1 for w in weights]
            products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
            total = total + sum((s * p).sum() for s, p in zip(signs, products, strict=True))

    def ours() -> None:
        trace(network, inputs, labels, method="exact")

    def least() -> None:
        """A forward pass and, for every class, a backward pass down to the first layer's output."""
        hidden = frozen[:first](inputs).requires_grad_()
        logits = frozen[first:](hidden)
        for _ in range(CLASSES):
            torch.autograd.grad(logits, hidden, cotangent, retain_graph=True)

    theirs, own, limit, once = medians(hutchinson, ours, least, torch.no_grad()(lambda: network(inputs)))
    baseline = f"{vectors} cached Hessian-vector products"
    return Row("trace", case, baseline, theirs / own, at_least, own / once, limit / once)
