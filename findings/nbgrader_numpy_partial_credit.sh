#!/usr/bin/env bash
# nbgrader 0.9.6 with numpy 2.4.6: partial credit that numpy has computed is full credit.
#
# Expected: a test cell whose last line is a number from 0 to its points gives that many points, as nbgrader has it
#   for partial credit. 3 * np.mean([...]) is such a number; with one of three cases right it gives 1 of 3 points.
# Seen: 3 of 3, and 3 of 3 for an answer that gets none right. nbgrader reads the score off the text that the cell
#   shows, which since numpy 2 is "np.float64(1.0)"; what float() can't read counts as full credit. The gradebook has
#   no mark of it: the grade is automatic, and needs no look by hand. Only the log of the run has a warning. The same
#   notebook, graded with numpy 1.26.4, gives 1 and 0 points; wrapped in float() it does so with both.
# Why it matters: in a numerical course most scores are numpy's numbers, a mean over cases or over seeds. A sheet that
#   graded right for years gives all points to everybody whose code runs once numpy is updated. The error is in the
#   students' favour, so that nobody complains, and a try with a right and a blank submission does not show it either:
#   the right one gets 3, the blank one raises and gets 0.
set -euo pipefail
export OMP_NUM_THREADS=1

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
export PATH="$folder/env/bin:$PATH"
python -m pip install --quiet --disable-pip-version-check \
    nbgrader==0.9.6 numpy==2.4.6 ipykernel==7.4.0 nbclient==0.11.0 nbconvert==7.17.2 nbformat==5.11.1 sqlalchemy==2.1.9

cat > "$folder/course.py" <<'PY'
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

TASK = "import numpy as np\n\ndef square(x):\n    ### BEGIN SOLUTION\n    return x * x\n    ### END SOLUTION"
BLANK = "raise NotImplementedError()"
ANSWERS = {"all": "return x * x", "one": "return 2 * x", "none": "return -1", "blank": BLANK}  # right in so many cases
CASES = "right = [square(x) == x**2 for x in (1, 2, 3)]\n"
TESTS = {"by-numpy": f"{CASES}3 * np.mean(right)", "by-python": f"{CASES}float(3 * np.mean(right))"}


def cell(name, source, points=None):
    mark = {"schema_version": 3, "grade_id": name, "grade": points is not None, "task": False}
    mark |= {"solution": points is None, "locked": points is not None} | ({"points": points} if points else {})
    return new_code_cell(source, metadata={"nbgrader": mark})


def write(path, cells):
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


root = Path(sys.argv[1])
tests = [cell(name, source, 3) for name, source in TESTS.items()]
write(root / "source/sheet/sheet.ipynb", [cell("square", TASK), *tests])
for student, answer in ANSWERS.items():
    own = cell("square", f"import numpy as np\n\ndef square(x):\n    {answer}")
    write(root / f"submitted/{student}/sheet/sheet.ipynb", [own, *tests])
PY
cat > "$folder/check.py" <<'PY'
import sys

import numpy as np
from nbgrader.api import Gradebook

points = {}
with Gradebook(f"sqlite:///{sys.argv[1]}/gradebook.db") as gradebook:
    for student in ("all", "one", "none", "blank"):
        for grade in gradebook.find_submission("sheet", student).notebooks[0].grades:
            points[student, grade.name] = grade.auto_score
            assert grade.max_score == 3 and not grade.needs_manual_grade
print(f"numpy {np.__version__}:")
for name in ("by-numpy", "by-python"):
    of_each = [f"{points[who, name]:g} of 3 with {who} right" for who in ("all", "one", "none")]
    print(f"   {name:9s}", ", ".join([*of_each, f"{points['blank', name]:g} for the blank one"]))
right = {"all": 3, "one": 1, "none": 0, "blank": 0}
seen = right | ({"one": 3, "none": 3} if np.__version__.startswith("2.") else {})
assert {who: points[who, "by-python"] for who in right} == right
assert {who: points[who, "by-numpy"] for who in right} == seen
PY

grade() {
    python "$folder/course.py" "$1"
    (
        cd "$1"
        export HOME="$folder" IPYTHONDIR="$folder/ipython" JUPYTER_CONFIG_DIR="$folder/jupyter"
        { nbgrader generate_assignment sheet && nbgrader autograde sheet; } > log 2>&1 || { cat log; exit 1; }
    )
    python -W ignore "$folder/check.py" "$1"
}

grade "$folder/new"
grep --only-matching --max-count=1 "Cell output is np.float64.*" "$folder/new/log"
python -m pip install --quiet --disable-pip-version-check numpy==1.26.4
grade "$folder/old"
