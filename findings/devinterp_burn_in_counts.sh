#!/usr/bin/env bash
# devinterp 2.0.1 (with torch 2.14.1): the learning coefficient is the mean over the burn-in, too.
#
# Expected: num_burnin_steps, "SGLD burn-in steps before drawing", are thrown away: a chain starts at the network itself,
#   where the loss is least, and has first to find its way out. llc_mean is n_beta times the mean over the draws less the
#   loss at the start.
# Seen: loss_trace has the steps of the burn-in in front of the draws, and llc_mean is the mean over both. Of linear
#   regression on 200 samples and 4 features, whose coefficient at this n_beta and localization is 1.974 exactly, 900
#   steps of burn-in and 100 draws give 0.906; the 100 draws alone have 1.886. Asking for a longer burn-in moves the
#   estimate by no more than asking for more draws, and never throws away the way out.
# Why it matters: coefficients are compared between networks whose chains need different times to arrive; what was meant
#   to take that difference away leaves it in, and all of them come out too small.
set -euo pipefail
export OMP_NUM_THREADS=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check devinterp==2.0.1 torch==2.14.1 numpy==2.4.6 \
    datasets==5.2.0 transformers==5.24.0 xarray==2026.9.0 zarr==3.1.6

HOME="$folder" "$folder/env/bin/python" -W ignore - <<'PY' 2>"$folder/log" || { cat "$folder/log"; exit 1; }
import math

import torch
from datasets import Dataset
from devinterp.slt.llc import llc

n = 200
generator = torch.Generator().manual_seed(0)
x = torch.randn(n, 4, generator=generator)
y = x @ torch.tensor([[1.0, -2.0, 0.5, 1.0]]).T + 0.3 * torch.randn(n, 1, generator=generator)
model = torch.nn.Linear(4, 1, bias=False)
with torch.no_grad():
    model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)


def squared_error(model, tokens):  # a sequence of tokens says which sample it is
    chosen = tokens[:, 0]
    return (model(x[chosen]) - y[chosen]).square()


samples = Dataset.from_dict({"input_ids": [[i, i] for i in range(n)]}).with_format("torch")
n_beta, localization = n / math.log(n), 1.0
curvature = n_beta * torch.linalg.eigvalsh(2 * x.T @ x / n)
exact = (curvature / (curvature + localization)).sum().item() / 2
lr = 0.002 / (curvature.max().item() + localization)
found = llc(
    model, samples, {}, lr=lr, n_beta=n_beta, localization=localization, loss_fn=squared_error, batch_size=n,
    num_chains=4, num_draws=100, num_burnin_steps=900, num_init_loss_batches=1, device="cpu",
)
trace, start = found.loss_trace.values, found.init_loss.item()
of_all, of_draws = (n_beta * (part.mean() - start) for part in (trace, trace[:, 900:]))
print(f"exact {exact:.3f}; llc_mean {found.llc_mean.item():.3f}; of the {trace.shape[1]} steps in the trace {of_all:.3f}")
print(f"of the 100 draws after the burn-in {of_draws:.3f}")
assert trace.shape == (4, 1000)
assert abs(found.llc_mean.item() - of_all) < 1e-3 * exact
assert of_draws > 1.5 * of_all and abs(of_draws - exact) < 0.5
PY
