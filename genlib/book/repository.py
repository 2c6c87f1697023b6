"""Set the repository's address: in `_config.yml`, the README, and the set-up cell of every notebook."""

import re
import sys
from pathlib import Path

import nbformat
import yaml

__all__ = [
    "SETUP_CELL",
    "address",
    "assignments",
    "badges",
    "chapters",
    "guides",
    "notebooks",
    "set_address",
    "setup_cell",
]

# The second cell of every notebook. The only place where its text is written; `make repository` fills in the address.
SETUP_CELL = """\
# On Colab this fetches the book and installs genlib beside Colab's own torch; elsewhere it does nothing.
import os
import subprocess
import sys

REPOSITORY, TAG = "{address}", "main"
if "google.colab" in sys.modules and REPOSITORY and not os.path.isdir("../genlib"):
    if not os.path.isdir("book"):
        subprocess.run(["git", "clone", "-q", "--depth", "1", "-b", TAG, REPOSITORY, "book"], check=True)
    %pip install -q ./book
    os.chdir("book/chapters")
"""

BADGES = re.compile(r"(?<=<!-- badges -->\n).*?(?=<!-- end of badges -->)", re.DOTALL)
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


def setup_cell(address: str) -> str:
    """The set-up cell for a repository at `address`, which may be empty."""
    return SETUP_CELL.format(address=address).rstrip("\n")


def address(root: Path) -> str:
    """The repository's address as `_config.yml` states it: empty until one is set."""
    return yaml.safe_load((root / "_config.yml").read_text("utf-8"))["repository"]["url"]


def chapters(root: Path) -> list[Path]:
    """The chapters' notebooks, in order."""
    return sorted((root / "chapters").glob("[0-9][0-9]_*.ipynb"))


def guides(root: Path) -> list[Path]:
    """The notebooks that are no chapters: they show how something is done, and decide no claim."""
    return sorted(set((root / "chapters").glob("*.ipynb")) - set(chapters(root)))


def notebooks(root: Path) -> list[Path]:
    """The chapters and the guides."""
    return chapters(root) + guides(root)


def assignments(root: Path) -> list[Path]:
    """The assignments' notebooks, releases and sources."""
    return sorted((root / "chapters/assignments").glob("[rs]*/*/*.ipynb"))


def badges(root: Path, address: str) -> str:
    """A badge for each notebook that opens it in Colab, as the lines of a list."""
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    lines = []
    for path in notebooks(root):
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
        lines.append(f"- [![Open in Colab]({BADGE})]({colab}/blob/main/chapters/{path.name}) {title}\n")
    return "".join(lines)


def set_address(root: Path, new: str) -> None:
    """Write the address `new` everywhere it stands, or raise a ValueError and write nothing."""
    new = new.strip().removesuffix("/").removesuffix(".git")
    if not ADDRESS.fullmatch(new):
        raise ValueError(f"URL is {new!r}; give the repository's address, such as https://github.com/owner/name")
    old = address(root)
    config = (root / "_config.yml").read_text("utf-8")
    written = {root / "_config.yml": _replace_once(config, f'  url: "{old}"\n', f'  url: "{new}"\n', "_config.yml")}
    readme = (root / "README.md").read_text("utf-8")
    if not BADGES.search(readme):
        raise ValueError("README.md: the place for badges, between <!-- badges --> and <!-- end of badges -->, is gone")
    written[root / "README.md"] = BADGES.sub(badges(root, new), readme)
    for path in notebooks(root) + assignments(root):
        notebook = nbformat.read(path, as_version=4)
        if notebook.cells[1].source != setup_cell(old):
            raise ValueError(f"{path.name}: its second cell is not the set-up cell of genlib/book/repository.py")
        notebook.cells[1].source = setup_cell(new)
        written[path] = nbformat.writes(notebook) + "\n"
    for path, text in written.items():
        path.write_text(text, "utf-8")


def _replace_once(text: str, old: str, new: str, where: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"{where}: expected the line {old.strip()} exactly once")
    return text.replace(old, new)


if __name__ == "__main__":
    try:
        set_address(Path.cwd(), sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(str(error))
