#!/usr/bin/env python3
"""Write a notebook from a recipe: python recipes/notebook.py recipes/colab.sh > recipes/colab.ipynb

Its first comment is the first cell. Each part begins with a heading, `# ## ...`, whose comment becomes a cell of text
and whose commands a cell of bash. What is for shellcheck is left out.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any


def notebook(recipe: str) -> dict[str, Any]:
    """A notebook in Jupyter's format 4.5."""
    told = re.sub(r"^#(!| shellcheck).*\n", "", recipe, flags=re.MULTILINE)
    first, *parts = re.split(r"^(?=# ## )", told, flags=re.MULTILINE)
    cells = [_cell("markdown", first)]
    for part in parts:
        lines = part.splitlines(keepends=True)
        begin = next(place for place, line in enumerate(lines) if not line.startswith("#"))
        cells += [_cell("markdown", "".join(lines[:begin])), _cell("code", "%%bash\n" + "".join(lines[begin:]))]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells, "metadata": {**about, "accelerator": "GPU"}, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, text: str) -> dict[str, Any]:
    if kind == "markdown":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    return cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})


if __name__ == "__main__":
    print(json.dumps(notebook(Path(sys.argv[1]).read_text()), indent=1))
