# `make` lists the commands. Each works from a bare clone: it creates .venv first, once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# What the chapters read. Finished work of `make book` is kept in GENLIB_CACHE; the tests start from an empty one.
export GENLIB_SCALE ?= small
export GENLIB_SEED  ?= 0
export GENLIB_CACHE ?= $(CURDIR)/.cache

# Dry runs try every scale. Of the larger ones `test` takes one, by turns from change to change.
SCALES  ?= small gpu paper
SOURCES := $(wildcard genlib/*.py genlib/*/*.py chapters/*.ipynb chapters/claims/*.json chapters/claims/*/*.json chapters/records/*)
LARGER   = $(word $(shell expr 1 + $$(cat $(SOURCES) | cksum | cut -d ' ' -f 1) % 2),gpu paper)

# Side by side, of one thread each. The chapters of a book that is read run one after the other: it says how long each
# took. Those of `test` are checked, not read.
JOBS     ?= 2
TOGETHER := -n $(JOBS) --dist worksteal
NBMAKE_OPTIONS :=
# A process that the machine killed, for its memory say, tells nothing of a chapter: that one runs once more.
NBMAKE   := $(BIN)/pytest --nbmake --reruns 1 --only-rerun 'TerminatedWorkerError|DeadKernelError' --nbmake-timeout
PAGES    := $(wildcard chapters/assignments/release/*/*.ipynb chapters/*.md chapters/*.bib chapters/networks.json chapters/_static/*) _config.yml _toc.yml tests/benchmarks/record.json
# Two builds in one folder would remove each other's files: the second says so and ends.
ALONE    := $(BIN)/python -m genlib.book.alone $(MAKE) --no-print-directory

IN_TURN  := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# Jupyter, matplotlib and Chromium keep files at home: where that can't be written, here.
ifneq ($(shell test -w "$$HOME" && echo writable),writable)
export HOME := $(CURDIR)/build/home
$(shell mkdir -p build/home)
endif

.PHONY: help book test test-all lint unit fresh pages meanwhile dry-runs lab bench record assignments grade-demo grade totals feedback repository clean always
.DELETE_ON_ERROR:

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo "GENLIB_SCALE=small|gpu|paper and GENLIB_SEED=0,1,2,… choose the size and the seeds of 'make book'."

# Whatever is removed has a fixed name that begins in this folder, so that nothing outside of it can be meant.
book: $(VENV)/.installed  ## run every chapter and leave the book in _build/html/index.html
	@$(ALONE) _build/.complete
	@echo "The book: _build/html/index.html"

test: $(VENV)/.installed lint  ## everything that gates a change: lint, unit tests, chapters, a fresh book, its pages
	@$(ALONE) fresh
	@$(ALONE) -j2 $(IN_TURN) pages meanwhile SCALES=$(LARGER) NBMAKE_OPTIONS="$(TOGETHER)" \
	    GENLIB_CACHE="$(CURDIR)/build/empty-cache"

test-all: test  ## `test`, every notebook as on Colab, every scale, and the claims on five fresh blocks of seeds
	@$(ALONE) dry-runs SCALES="$(filter-out $(LARGER),$(SCALES))"
	GENLIB_COLAB=all $(BIN)/pytest $(TOGETHER) tests/book/test_colab.py
	GENLIB_ALL=1 OMP_NUM_THREADS=1 $(BIN)/pytest $(TOGETHER) tests/test_grammar.py tests/test_families.py \
	    tests/book/test_networks.py tests/book/test_assignments.py
	for seed in 1 2 3 4 5; do \
	    rm -rf build/empty-cache; \
	    GENLIB_SEED=$$seed GENLIB_CACHE="$(CURDIR)/build/empty-cache" $(NBMAKE)=3000 $(TOGETHER) chapters/[0-9]*.ipynb || exit 1; \
	done

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

unit: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TOGETHER) --ignore=tests/book/test_pages.py --ignore=tests/book/test_browser.py

fresh:
	rm -rf build/book _build/.complete build/empty-cache

# While the chapters run, the book is built and its pages are looked at.
meanwhile:
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory dry-runs

pages: _build/.complete
	$(BIN)/pytest $(TOGETHER) tests/book/test_pages.py tests/book/test_browser.py

dry-runs: $(VENV)/.installed
	for scale in $(SCALES); do \
	    rm -rf build/dry-cache; \
	    GENLIB_DRY_RUN=1 GENLIB_SCALE=$$scale GENLIB_CACHE="$(CURDIR)/build/dry-cache" OMP_NUM_THREADS=1 \
	        $(NBMAKE)=600 $(TOGETHER) chapters/[0-9]*.ipynb || exit 1; \
	done

lab: $(VENV)/.installed  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab chapters

bench: $(VENV)/.installed  ## time the kernels against their peers and write tests/benchmarks/record.json
	$(BIN)/python tests/benchmarks

record: $(VENV)/.installed  ## run the chapters on seed block 1 and write their claims, populations and families of networks
	$(BIN)/python -m genlib.book.networks
	GENLIB_RECORD=1 GENLIB_SEED=1 $(NBMAKE)=1000000 chapters/[0-9]*.ipynb
	GENLIB_RECORD=1 GENLIB_SEED=1 GENLIB_DATA=drawn_digits $(NBMAKE)=1000000 chapters/0[1-5]*.ipynb

assignments: $(VENV)/.installed  ## make the releases of the assignments from their sources; NAME= for one of them
	@$(BIN)/python -m genlib.book.assignments release $(NAME)

grade-demo: $(VENV)/.installed  ## grade three example submissions: right, blank, hard-coded; NAME= for one assignment
	@$(BIN)/python -m genlib.book.assignments demo $(NAME)

grade: $(VENV)/.installed  ## grade submissions: make grade SUBMISSIONS=folder COURSE=folder OVERLAY=folder NAME=assignment DUE=moment PENALTY=10%/day
	@$(BIN)/python -m genlib.book.assignments grade "$(SUBMISSIONS)" "$(COURSE)" \
	    $(if $(OVERLAY),--overlay "$(OVERLAY)") $(if $(NAME),--name $(NAME)) $(if $(DUE),--due "$(DUE)") \
	    $(if $(PENALTY),--penalty "$(PENALTY)")

totals: $(VENV)/.installed  ## write the points of a course again, after marking by hand: make totals COURSE=folder PENALTY=10%/day
	@$(BIN)/python -m genlib.book.assignments totals "$(COURSE)" $(if $(PENALTY),--penalty "$(PENALTY)")

feedback: $(VENV)/.installed  ## write a page for each student with answers, points and comments: make feedback COURSE=folder
	@$(BIN)/python -m genlib.book.assignments feedback "$(COURSE)"

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
_build/.complete: build/book/.executed $(PAGES)
	rm -rf _build/html _build/.doctrees
	cp _toc.yml build/book
	sed 's/execute_notebooks: .*/execute_notebooks: "off"/' _config.yml > build/book/_config.yml
	cp -R chapters/*.md chapters/*.bib chapters/_static build/book/chapters
	cp -R chapters/assignments/release build/book/chapters/assignments
	$(BIN)/jupyter-book build build/book --path-output . --quiet -W --keep-going -n
	@touch $@

build/book/.executed: $(VENV)/.installed $(SOURCES) build/book.knobs
	rm -rf build/book
	mkdir -p build/book/chapters
	cp -R chapters/* build/book/chapters
	rm -rf build/book/chapters/assignments/source
	$(NBMAKE)=1000000 $(NBMAKE_OPTIONS) --overwrite build/book/chapters
	@touch $@

# Rewritten only when the scale, the seeds, the data or the way of timing change, so that the chapters then run again.
build/book.knobs: always
	@mkdir -p $(@D)
	@echo "$(GENLIB_SCALE) $(GENLIB_SEED) $(GENLIB_DATA) $(GENLIB_DRY_RUN) $(NBMAKE_OPTIONS)" > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
