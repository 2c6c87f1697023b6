#!/usr/bin/env bash
# curvlinops-for-pytorch 3.0.1 (with torch 2.14.1): the Hessian of a weighted mean, from data in batches.
#
# Expected: HessianLinearOperator and GGNLinearOperator take a loss, and data as an iterable of batches; how the data are
#   cut is a matter of memory. So the same samples in one batch, in batches of four, and one by one give one matrix.
# Seen: so it is for plain CrossEntropyLoss. With class weights, or with ignore_index, the batches are averaged by their
#   numbers of samples, where the loss of each has been divided by the sum of its weights, or by the labels that it
#   counts. In one batch both operators are right. In batches of four the trace is 0.81 of the right one with weights
#   and 0.62 with ignored labels; one by one the weights cancel, and the matrix is to the last digit that of the loss
#   without weights. check_deterministic, which compares two passes over the same batches, has nothing to say.
# Why it matters: weights are set where a class is rare, and its curvature is then the largest. Nobody measures a network
#   on a single batch, so what is reported hangs on batch_size, and on the order of the samples too. With
#   reduction="sum" and a division by the sum of all weights afterwards the operators are right for any batches.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 curvlinops-for-pytorch==3.0.1

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import nn

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 3))
x, y = torch.randn(12, 4), torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
flat = torch.cat([p.detach().flatten() for p in net.parameters()])
weights = torch.tensor([1.0, 5.0, 20.0])


def exact(loss):
    def at(v):
        w, b = v.split([12, 3])
        return loss(x @ w.view(3, 4).T + b, y)

    return torch.autograd.functional.hessian(at, flat)


def in_batches(operator, loss, size):
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, 12, size)]
    return operator(net, loss, list(net.parameters()), batches, check_deterministic=True) @ torch.eye(15)


cases = {
    "plain": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(weights),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=0),
}
ratio, found = {}, {}
print("trace over the exact one, of the Hessian and the Gauss-Newton matrix, in batches of")
for name, loss in cases.items():
    for size in (12, 4, 1):
        matrices = [in_batches(operator, loss, size) for operator in (HessianLinearOperator, GGNLinearOperator)]
        found[name, size] = matrices
        ratio[name, size] = [float(matrix.trace() / exact(loss).trace()) for matrix in matrices]
        print(f"{name:14s}{size:3d}", *(f"{r:8.4f}" for r in ratio[name, size]))

for size in (12, 4, 1):
    assert all(abs(r - 1) < 1e-12 for r in ratio["plain", size])
for name, low, high in (("weights", 0.75, 0.86), ("ignore_index", 0.57, 0.67)):
    assert all(abs(r - 1) < 1e-12 for r in ratio[name, 12])
    assert all(low < r < high for r in ratio[name, 4])
assert all(torch.allclose(matrix, exact(cases["plain"]), atol=1e-12) for matrix in found["weights", 1])
total = weights[y].sum()
summed = nn.CrossEntropyLoss(weights, reduction="sum")
mended = in_batches(HessianLinearOperator, summed, 4) / total
assert torch.allclose(mended, exact(cases["weights"]), atol=1e-12)
print("by a sum over all weights: right")
PY
