"""What the Makefile removes lies in its own folder, and no two builds work in one."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = [sys.executable, "-m", "genlib.book.alone", sys.executable, "-c"]


@pytest.fixture
def clone(tmp_path, copy_sources):
    """The sources without git in a folder with a space, beside what each half of its name could mean."""
    for neighbour in ("my", "book", "build", ".cache"):
        (tmp_path / neighbour).write_text("a neighbour")
    return copy_sources(tmp_path / "my book")


def _removals(clone):
    """The commands that any target removes with, as they would run."""
    makefile = (clone / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([\w./-]+):(?!=)", makefile, re.MULTILINE)
    found = set()
    for target in set(targets) - {".PHONY", ".DELETE_ON_ERROR"}:
        printed = subprocess.run(
            ["make", "--dry-run", "--always-make", target], cwd=clone, capture_output=True, text=True, check=True
        )
        found |= set(re.findall(r"\brm -\w+ [^;&|\n]+", printed.stdout))
    return found


def _alive(clone):
    return {path.name for path in clone.parent.iterdir() if path.exists()}


def test_whatever_is_removed_lies_in_the_folder(clone):
    removals = _removals(clone)
    assert {"rm -rf build/book", "rm -rf build/dry-cache"} <= removals
    for command in removals:
        subprocess.run(command, shell=True, cwd=clone, check=True)
    assert _alive(clone) == {"my book", "my", "book", "build", ".cache"}
    assert (clone / "chapters/index.md").exists()


def test_a_removal_elsewhere_is_found(clone):
    makefile = clone / "Makefile"
    makefile.write_text(makefile.read_text("utf-8").replace("rm -rf build/book", "rm -rf $(CURDIR)/build/book"))
    for command in _removals(clone):
        subprocess.run(command, shell=True, cwd=clone)
    assert "my" not in _alive(clone)


def test_the_second_command_at_once_says_why_it_does_not_run(tmp_path):
    held = subprocess.Popen(
        [*ALONE, "print('begun', flush=True); input()"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert held.stdout.readline() == "begun\n"
    second = subprocess.run([*ALONE, "1 / 0"], cwd=tmp_path, capture_output=True, text=True)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "Another make is at work" in second.stderr
    held.communicate("\n")
    assert held.returncode == 0
    assert subprocess.run([*ALONE, "raise SystemExit(3)"], cwd=tmp_path).returncode == 3


def test_what_runs_alone_may_run_more(tmp_path):
    inner = f"import subprocess; raise SystemExit(subprocess.call({[*ALONE, 'raise SystemExit(4)']!r}))"
    assert subprocess.run([*ALONE, inner], cwd=tmp_path).returncode == 4


def test_the_larger_scale_hangs_on_the_sources_alone(clone):
    def larger():
        printed = subprocess.run(["make", "-n", "test"], cwd=clone, capture_output=True, text=True, check=True).stdout
        return re.search(r"SCALES=(\w+)", printed)[1]

    seen = set()
    for number in range(20):
        # A checksum adds bits up: of texts that differ in one digit alone, all may turn out even.
        (clone / "genlib/scale.py").write_text(f"# {hashlib.sha256(bytes([number])).hexdigest()}\n")
        seen.add(larger())
    assert seen == {"gpu", "paper"}
