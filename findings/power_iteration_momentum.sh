#!/usr/bin/env bash
# hessian-eigenthings 1.0.0a5 (with torch 2.13.0): power iteration with momentum is wrong by just the momentum.
#
# Expected: the `momentum` of power_iteration_one and deflated_power_iteration makes them converge faster, to the same
#   eigenvalues; what is returned as `converged`, with a residual of 1e-6, is an eigenvalue to about that accuracy.
# Seen: it is the eigenvalue minus the momentum. The Rayleigh quotient is taken of Hv - momentum * (the v before), and
#   once v stands still that is lambda - momentum, with a residual of zero. The eigenvector is right, so its own v.Hv
#   is the eigenvalue, and the flag says converged. A second eigenvalue, after deflation, is short by the same amount.
# Why it matters: the largest eigenvalue is the sharpness that measures are ranked by. An offset is worse than a
#   factor: two networks of sharpness 1.29 and 0.71 are reported as 1.19 and 0.61 with momentum 0.1, so that their
#   ratio changes, and with it any claim such as "twice as flat" or a comparison with 2 / learning rate. Nothing but a
#   product of one's own, v.Hv, shows it.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 hessian-eigenthings==1.0.0a5

"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from hessian_eigenthings import HessianOperator, deflated_power_iteration, supervised_loss
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x = torch.randn(200, 6)
y = (x[:, 0] * x[:, 1] > 0).long()


def trained(width, lr):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


def exact_eigenvalues(network):
    weights = {name: w.detach() for name, w in network.named_parameters()}
    blocks = torch.func.hessian(lambda w: cross_entropy(torch.func.functional_call(network, w, (x,)), y))(weights)
    rows = [torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], 1) for a in weights]
    return torch.linalg.eigvalsh(torch.cat(rows)).flip(0)


for name, network in {"early": trained(32, 0.05), "late": trained(8, 2.0)}.items():
    exact = exact_eigenvalues(network)[:2]
    operator = HessianOperator(network, [(x, y)], supervised_loss(nn.CrossEntropyLoss()))
    print(f"{name}: the two largest eigenvalues are {exact.tolist()}")
    for momentum in (0.0, 0.1, 0.5) if name == "early" else (0.0, 0.1):
        pairs = deflated_power_iteration(operator, k=2, momentum=momentum, max_iter=3000, tol=1e-6, seed=0)
        v = pairs.eigenvectors[0]
        print(
            f"   momentum {momentum}: {pairs.eigenvalues.tolist()}, converged {pairs.converged.tolist()}, "
            f"residuals {[f'{r:.0e}' for r in pairs.residuals]}, v.Hv {float(v @ (operator @ v)):.6f}"
        )
        assert pairs.converged.all() and pairs.residuals.max() < 1e-5
        assert abs(v @ (operator @ v) - exact[0]) < 1e-6
        assert (pairs.eigenvalues - (exact - momentum)).abs().max() < 1e-5
PY
