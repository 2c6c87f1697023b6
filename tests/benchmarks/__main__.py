"""`make bench`: every benchmark, as a table with the worst first, and as a record with the machine it ran on.

With names of subjects, `python tests/benchmarks norms curvature`, these alone, and no record.
"""

import json
import os
import platform
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import bayes
import curvature
import earlier
import measures
import memory
import norms
import optimizers
import pac_bayes
import pandas as pd
import ranking
import sensitivity
import sharpness
import torch
import training

RECORD = Path(__file__).with_name("record.json")
MODULES = (training, optimizers, norms, sharpness, pac_bayes, bayes, curvature, sensitivity, measures, ranking, earlier)
SUBJECTS = {module.__name__: module for module in MODULES}


def main(names: list[str]) -> None:
    if unknown := sorted(set(names) - set(SUBJECTS)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; choose among {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    found = [row for name in names or SUBJECTS for row in SUBJECTS[name].rows()]
    rows = sorted(found, key=lambda row: row.margin)
    entries = [row.entry() for row in rows]
    if not names:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": gpu, "threads": 1}
        environment = machine | {"python": platform.python_version(), "torch": torch.__version__}
        record = {"environment": environment, "rows": entries, "memory": memory.entries()}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    table = pd.DataFrame(entries).assign(met=[row.met for row in rows])
    table["times the limit"] = (table.passes / table.limit_passes).round(2)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
