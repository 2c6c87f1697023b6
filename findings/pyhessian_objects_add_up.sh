#!/usr/bin/env bash
# PyHessian 0.1 (with torch 2.13.0): several `hessian` objects of one model hold sums of Hessians.
#
# Expected: hessian(model, criterion, data=batch) describes that batch. Made for three batches, the three objects give
#   the three batches' largest eigenvalues and traces, whatever else was made before.
# Seen: the second object is that of the sum of the first two losses, the third that of all three. The constructor
#   calls loss.backward(create_graph=True), which adds to the .grad that the object before has left in the model,
#   graph and all, and takes the sum for the gradient of its own loss. Three objects of one and the same batch give
#   once, twice and three times its eigenvalue. Nothing is raised, and measuring each object before the next is made
#   gives right values, for that clears the gradients.
# Why it matters: a list of one object a batch, or one for the training and one for the test data, is how one compares
#   sharpness or sees its noise. Here the mean over batches comes out 1.8 times too large, and "test" would seem about
#   twice as sharp as "train" only because it was made second.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 PyHessian==0.1

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from pyhessian import hessian
from torch import nn
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
x, y = torch.randn(60, 5), torch.randint(3, (60,))
batches = [(x[i::3], y[i::3]) for i in range(3)]
criterion = nn.CrossEntropyLoss()
weights = {name: w.detach() for name, w in model.named_parameters()}


def exact(batch):
    loss = lambda w: cross_entropy(torch.func.functional_call(model, w, (batch[0],)), batch[1])
    blocks = torch.func.hessian(loss)(weights)
    rows = [torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], 1) for a in weights]
    return torch.cat(rows)


def largest(matrix):
    return float(torch.linalg.eigvalsh(matrix)[-1])


def measured(one):
    return one.eigenvalues(maxIter=2000, tol=1e-7)[0][0]


def shown(values):
    return ", ".join(f"{value:.4f}" for value in values)


matrices = [exact(batch) for batch in batches]
alone = [largest(matrix) for matrix in matrices]
sums = [largest(sum(matrices[: i + 1])) for i in range(3)]

one_by_one = []
for batch in batches:
    one_by_one.append(measured(hessian(model, criterion, data=batch, cuda=False)))
model.zero_grad()
made_together = [hessian(model, criterion, data=batch, cuda=False) for batch in batches]
together = [measured(one) for one in made_together]
model.zero_grad()
made_alike = [hessian(model, criterion, data=batches[0], cuda=False) for _ in range(3)]
alike = [measured(one) for one in made_alike]

print(f"largest eigenvalue of each batch's Hessian:        {shown(alone)}")
print(f"PyHessian, each measured before the next is made:  {shown(one_by_one)}")
print(f"PyHessian, all three made first:                   {shown(together)}")
print(f"largest eigenvalue of the sum of the first i:      {shown(sums)}")
print(f"PyHessian, three objects of the first batch:       {shown(alike)}")
print(f"mean over batches: {sum(together) / 3:.4f} in place of {sum(alone) / 3:.4f}")


def close(a, b):
    return all(abs(p - q) < 2e-3 * abs(q) for p, q in zip(a, b, strict=True))


assert close(one_by_one, alone)
assert close(together, sums) and together[1] > 1.5 * alone[1] and together[2] > 2 * alone[2]
assert close(alike, [i * alone[0] for i in (1, 2, 3)])
PY
