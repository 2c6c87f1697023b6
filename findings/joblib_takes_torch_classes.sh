#!/usr/bin/env bash
# joblib 1.6.0 with torch 2.14.1: a function that reads an attribute named `classes` can't be sent to a worker.
#
# Expected: Parallel sends a function of a script or notebook to its processes with what the function uses: its globals,
#   here torch, by name. What attributes of *other* objects are called does not matter.
# Seen: PicklingError, from "cannot pickle '_Classes' object". The vendored cloudpickle looks which submodules of a
#   module a function may need, by the names of all attributes in its code. torch.classes is such a submodule once torch
#   is imported, an object that can't be pickled; and `dataset.classes` is what every data set of torchvision calls its
#   class names. The same function with getattr(dataset, "classes"), without the global torch, or in an imported module
#   runs. So does one that reads `dataset.labels`.
# Why it matters: training many networks side by side from a notebook is where both meet, len(dataset.classes) being how
#   one builds a network for a data set. The error names neither the function nor the attribute, and it comes late:
#   adding `.classes` to a helper three calls away breaks a sweep that ran.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 joblib==1.6.0 numpy==2.4.6

cat > "$folder/sweep.py" <<'PY'
from types import SimpleNamespace

import joblib
import torch

dataset = SimpleNamespace(classes=("cat", "dog", "owl"), labels=("cat", "dog", "owl"))


def by_classes(width):
    return tuple(torch.nn.Linear(width, len(dataset.classes)).weight.shape)


def by_getattr(width):
    return tuple(torch.nn.Linear(width, len(getattr(dataset, "classes"))).weight.shape)


def by_labels(width):
    return tuple(torch.nn.Linear(width, len(dataset.labels)).weight.shape)


def without_torch(width):
    return (len(dataset.classes), width)


def found(function):
    try:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(function)(width) for width in (4, 5))
    except Exception as error:
        *_, last = (line for line in str(error.__cause__).splitlines() if line.strip('" '))
        return f"{type(error).__name__}, from {last}"


if __name__ == "__main__":
    sizes = [(3, 4), (3, 5)]
    seen = {f.__name__: found(f) for f in (by_classes, by_getattr, by_labels, without_torch)}
    for name, result in seen.items():
        print(f"{name}: {result}")
    assert "cannot pickle '_Classes' object" in seen["by_classes"], "an attribute's name matters no more"
    assert seen["by_getattr"] == seen["by_labels"] == seen["without_torch"] == sizes
    print(f"as described (joblib {joblib.__version__}, torch {torch.__version__})")
PY
"$folder/env/bin/python" -W ignore "$folder/sweep.py"
