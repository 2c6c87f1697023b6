#!/usr/bin/env bash
# nngeometry 0.4 and backpack-for-pytorch 1.7.1 (with torch 2.14.1): a network that uses a layer, or a weight, twice.
#
# Expected: where one nn.Linear, or one weight, stands at two places, a sample's gradient is the sum of what both places
#   give, as .grad is. So nngeometry's FIM is the Fisher matrix (J^T H J, J the Jacobian by torch.func), and the mean of
#   BackPACK's BatchGrad is .grad.
# Seen: for nngeometry and one layer twice the matrix has the right shape, is symmetric and positive, and is 15 % off,
#   its trace 1.44 in place of 1.53: both places' slopes meet the inputs of the last place. For BackPACK and one weight
#   in two layers the per-sample gradients are 36 % off, their mean is 38 % away from the .grad beside it, and
#   DiagGGNExact sums up to 1.39 in place of 1.57: the first place's share is all that is kept. Without reuse both are
#   exact, and opacus 1.6.0 is so with it. Nothing is raised (BackPACK does for one layer twice).
# Why it matters: tied weights (input and output embedding, recurrent and equilibrium networks, layers shared over
#   depth) are there to make networks small, and one compares just such networks by their Fisher trace or gradient
#   noise. Tied or not is then a difference of the measure, not of the networks.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 nngeometry==0.4 backpack-for-pytorch==1.7.1 opacus==1.6.0

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagGGNExact
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense
from opacus import GradSampleModule
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(30, 6), torch.randint(3, (30,))
KINDS = "two layers", "one layer twice", "one weight in two layers"


def network(kind):
    torch.manual_seed(1)
    first, second, head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    if kind == "one layer twice":
        second = first
    if kind == "one weight in two layers":
        second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), head)


def flat(tensors, start=0):
    return torch.cat([t.flatten(start) for t in tensors], start)


def per_sample(net):
    losses = [cross_entropy(net(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    return torch.stack([flat(torch.autograd.grad(loss, list(net.parameters()))) for loss in losses])


def fisher(net):
    weights = {name: w.detach() for name, w in net.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(net, w, (x,)))(weights)
    jacobian = flat([jacobian[name] for name in weights], 2)
    p = net(x).detach().softmax(1)
    of_loss = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", jacobian, of_loss, jacobian) / len(x)


def by_opacus(net):
    wrapped = GradSampleModule(net)
    cross_entropy(wrapped(x), y).backward()
    return flat([w.grad_sample for w in net.parameters()], 1)


def by_backpack(net, extension, name):
    net, loss = extend(net), extend(nn.CrossEntropyLoss())
    with backpack(extension):
        loss(net(x), y).backward()
    return [getattr(w, name) for w in net.parameters()], flat([w.grad for w in net.parameters()])


def by_nngeometry(net):
    return FIM(net, DataLoader(TensorDataset(x, y), batch_size=len(x)), PMatDense).to_torch()


def off(seen, exact):
    return float((seen - exact).norm() / exact.norm())


for kind in KINDS:
    error = off(by_opacus(network(kind)), per_sample(network(kind)))
    print(f"{kind}: opacus off by {error:.0e}")
    assert error < 1e-13

for kind in KINDS[:2]:
    exact, seen = fisher(network(kind)), by_nngeometry(network(kind))
    smallest = float(torch.linalg.eigvalsh(seen)[0])
    print(f"{kind}: nngeometry off by {off(seen, exact):.1e}, its trace {seen.trace():.4f} of {exact.trace():.4f}")
    assert torch.allclose(seen, seen.T) and smallest > -1e-12
    assert off(seen, exact) < 1e-13 if kind == "two layers" else off(seen, exact) > 0.1

for kind in (KINDS[0], KINDS[2]):
    slopes, trace = per_sample(network(kind)), float(fisher(network(kind)).trace())
    seen, grad = by_backpack(network(kind), BatchGrad(), "grad_batch")
    diagonal, _ = by_backpack(network(kind), DiagGGNExact(), "diag_ggn_exact")
    seen, of_diagonal = len(x) * flat(seen, 1), float(flat(diagonal).sum())
    errors = [off(seen, slopes), off(seen.mean(0), grad), of_diagonal / trace - 1]
    print(f"{kind}: BackPACK's gradients off by {errors[0]:.1e}, their mean from .grad by {errors[1]:.1e},", end=" ")
    print(f"the diagonal's sum {of_diagonal:.4f} of {trace:.4f}")
    assert off(grad, slopes.mean(0)) < 1e-13
    assert max(map(abs, errors)) < 1e-13 if kind == "two layers" else min(map(abs, errors)) > 0.05
PY
