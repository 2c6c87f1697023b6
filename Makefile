# `make` lists the commands. Each works from a bare clone: it creates .venv first, once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# What the chapters read. Finished work of `make book` is kept in GENLIB_CACHE; the tests start from an empty one.
export GENLIB_SCALE ?= small
export GENLIB_SEED  ?= 0
export GENLIB_CACHE ?= $(CURDIR)/.cache

# Dry runs try every scale. Of the larger ones `test` takes one, by turns from commit to commit.
SCALES   ?= small gpu paper
LARGER   := $(word $(shell echo $$(($$(git rev-list --count HEAD 2>/dev/null || echo 0) % 2 + 1))),gpu paper)

BOOK     := build/book
EMPTY    := $(CURDIR)/build/empty-cache
# Side by side, of one thread each. The chapters of a book that is read run one after the other: it says how long each
# took. Those of `test` are checked, not read.
JOBS     ?= 2
TOGETHER := -n $(JOBS) --dist worksteal
NBMAKE_OPTIONS :=
NBMAKE   := $(BIN)/pytest --nbmake --nbmake-timeout
SOURCES  := $(wildcard genlib/*.py genlib/*/*.py chapters/*.ipynb chapters/claims/*.json chapters/records/*)
PAGES    := $(wildcard chapters/assignments/release/*/*.ipynb chapters/*.md chapters/*.bib chapters/_static/*) _config.yml _toc.yml tests/benchmarks/record.json

.PHONY: help book test test-all lint unit dry-runs lab bench record assignments grade-demo grade totals repository clean always
.DELETE_ON_ERROR:

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo "GENLIB_SCALE=small|gpu|paper and GENLIB_SEED=0,1,2,… choose the size and the seeds of 'make book'."

book: _build/.complete  ## run every chapter and leave the book in _build/html/index.html
	@echo "The book: _build/html/index.html"

test: $(VENV)/.installed lint unit  ## everything that gates a change: lint, unit tests, chapters, a fresh book, its pages
	rm -rf $(BOOK) _build/.complete $(EMPTY)
	$(MAKE) --no-print-directory book GENLIB_CACHE=$(EMPTY) NBMAKE_OPTIONS="$(TOGETHER)"
	$(BIN)/pytest $(TOGETHER) tests/book/test_pages.py tests/book/test_browser.py
	$(MAKE) --no-print-directory dry-runs SCALES=$(LARGER)

test-all: test  ## `test`, every notebook as on Colab, every scale, and the claims on five fresh blocks of seeds
	$(MAKE) --no-print-directory dry-runs SCALES="$(filter-out $(LARGER),$(SCALES))"
	GENLIB_COLAB=all $(BIN)/pytest $(TOGETHER) tests/book/test_colab.py
	for seed in 1 2 3 4 5; do \
	    rm -rf $(EMPTY); \
	    GENLIB_SEED=$$seed GENLIB_CACHE=$(EMPTY) $(NBMAKE)=3000 $(TOGETHER) chapters/[0-9]*.ipynb || exit 1; \
	done

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

unit: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TOGETHER) --ignore=tests/book/test_pages.py --ignore=tests/book/test_browser.py

dry-runs: $(VENV)/.installed
	for scale in $(SCALES); do \
	    rm -rf $(EMPTY); \
	    GENLIB_DRY_RUN=1 GENLIB_SCALE=$$scale GENLIB_CACHE=$(EMPTY) OMP_NUM_THREADS=1 \
	        $(NBMAKE)=600 $(TOGETHER) chapters/[0-9]*.ipynb || exit 1; \
	done

lab: $(VENV)/.installed  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab chapters

bench: $(VENV)/.installed  ## time the kernels against their peers and write tests/benchmarks/record.json
	$(BIN)/python tests/benchmarks

record: $(VENV)/.installed  ## run the chapters on seed block 1 and write their claims and populations of networks
	GENLIB_RECORD=1 GENLIB_SEED=1 $(NBMAKE)=1000000 chapters

assignments: $(VENV)/.installed  ## make the releases of the assignments from their sources; NAME= for one of them
	@$(BIN)/python -m genlib.book.assignments release $(NAME)

grade-demo: $(VENV)/.installed  ## grade three example submissions: right, blank, hard-coded; NAME= for one assignment
	@$(BIN)/python -m genlib.book.assignments demo $(NAME)

grade: $(VENV)/.installed  ## grade submissions: make grade SUBMISSIONS=folder COURSE=folder OVERLAY=folder NAME=assignment
	@$(BIN)/python -m genlib.book.assignments grade "$(SUBMISSIONS)" "$(COURSE)" \
	    $(if $(OVERLAY),--overlay "$(OVERLAY)") $(if $(NAME),--name $(NAME))

totals: $(VENV)/.installed  ## write the points of a course again, after marking by hand: make totals COURSE=folder
	@$(BIN)/python -m genlib.book.assignments totals "$(COURSE)"

repository: $(VENV)/.installed  ## set the repository's address: make repository URL=https://github.com/owner/name
	@$(BIN)/python -m genlib.book.repository "$(URL)"

clean:  ## remove the built book and what runs left behind; .venv and the data stay
	rm -rf _build build dist *.egg-info .cache chapters/.cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	@echo "Installing into $(VENV): some minutes and about 7 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The chapters run in a copy, so that the sources hold no outputs; the book is then built from that copy.
# Sphinx reports a warning only when it reads a page anew: the folders it remembers by go first.
_build/.complete: $(BOOK)/.executed $(PAGES)
	rm -rf _build/html _build/.doctrees
	cp _config.yml _toc.yml $(BOOK)
	cp -R chapters/*.md chapters/*.bib chapters/_static $(BOOK)/chapters
	cp -R chapters/assignments/release $(BOOK)/chapters/assignments
	$(BIN)/python -m genlib.book.assemble $(BOOK) $(GENLIB_SCALE)
	$(BIN)/jupyter-book build $(BOOK) --path-output . --quiet -W --keep-going -n
	@touch $@

$(BOOK)/.executed: $(VENV)/.installed $(SOURCES) $(BOOK).knobs
	rm -rf $(BOOK)
	mkdir -p $(BOOK)/chapters
	cp -R chapters/* $(BOOK)/chapters
	rm -rf $(BOOK)/chapters/assignments/source
	$(NBMAKE)=1000000 $(NBMAKE_OPTIONS) --overwrite $(BOOK)/chapters
	@touch $@

# Rewritten only when the scale, the seeds or the way of timing change, so that the chapters then run again.
$(BOOK).knobs: always
	@mkdir -p $(@D)
	@echo "$(GENLIB_SCALE) $(GENLIB_SEED) $(GENLIB_DRY_RUN) $(NBMAKE_OPTIONS)" > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
