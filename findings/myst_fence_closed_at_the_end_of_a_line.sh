#!/usr/bin/env bash
# jupyter-book 1.0.4.post1 with myst-parser 3.0.1: a figure whose fence isn't closed takes the page, without a warning.
#
# Expected: a fence that closes at the end of a line of text, where it closes nothing, shows: as a warning of headings in
#   a figure at least, in a build that takes warnings for errors and is nitpicking (-W -n).
# Seen: the build ends with 0 and says nothing. All that follows is the figure's legend, headings as well: they become
#   rubrics within <figcaption>, and are gone from the sections of the page and so from its contents.
# Why it matters: such a page looks nearly right, and an editor that reflows a paragraph can make one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check jupyter-book==1.0.4.post1 sphinx==7.4.7 sphinx-book-theme==1.1.4 \
    myst-parser==3.0.1 beautifulsoup4==4.14.2 matplotlib==3.10.7
mkdir book
env/bin/python - <<'PYTHON'
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.figure(figsize=(1, 1))
plt.savefig("book/dots.png")
PYTHON
cat > book/_config.yml <<'YAML'
title: A small book
execute:
  execute_notebooks: "off"
YAML
printf 'format: jb-book\nroot: page\n' > book/_toc.yml
cat > book/page.md <<'MARKDOWN'
# Title

```{figure} dots.png
:name: fig-dots

Dots that say nothing. ```

## A section

Its text.

## Another

And its own.
MARKDOWN
code=0
env/bin/jupyter-book build book -q -W --keep-going -n > log 2>&1 || code=$?
env/bin/python - "$code" <<'PYTHON'
import sys

from bs4 import BeautifulSoup

code = int(sys.argv[1])
page = BeautifulSoup(open("book/_build/html/page.html", encoding="utf-8"), "html.parser").find("article")
lost = [heading.get_text() for heading in page.select("figure h2")]
sections = [section.find(["h1", "h2"], recursive=False).get_text().rstrip("#") for section in page.find_all("section")]
print("exit code", code)
print("headings in the figure:", lost)
print("sections of the page:", sections)
sys.exit(not (code == 0 and lost == ["A section", "Another"] and sections == ["Title"]))
PYTHON
