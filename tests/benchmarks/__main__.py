"""`make bench`: every benchmark, as a table with the worst first, and as a record with the machine it ran on."""

import json
import os
import platform
from pathlib import Path

import pandas as pd
import torch
import training

RECORD = Path(__file__).with_name("record.json")


def main() -> None:
    torch.set_num_threads(1)
    rows = sorted(training.rows(), key=lambda row: row.ratio / row.at_least)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": gpu, "threads": 1}
    environment = machine | {"python": platform.python_version(), "torch": torch.__version__}
    record = {"environment": environment, "rows": [row.entry() for row in rows]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    table = pd.DataFrame(record["rows"]).assign(met=[row.met for row in rows])
    table["times the limit"] = (table.passes / table.limit_passes).round(2)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
