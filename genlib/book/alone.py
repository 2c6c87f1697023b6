"""Run a command unless another one runs so in this folder: `python -m genlib.book.alone COMMAND ARGUMENT …`."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

LOCK, HELD = Path("build/.lock"), "MAKE_ALONE_IN"


def main(command: list[str]) -> int:
    """The command's exit status; a command that it runs in turn may run so too."""
    if os.environ.get(HELD) == str(Path.cwd()):
        return subprocess.call(command)
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another make is at work in this folder: wait until it has ended.", file=sys.stderr)
            return 1
        return subprocess.call(command, env=os.environ | {HELD: str(Path.cwd())})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
