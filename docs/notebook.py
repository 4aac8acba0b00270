"""Write the tutorial as a notebook, tutorial.ipynb from tutorial.md: `python docs/notebook.py`."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)


def create_notebook(page: str) -> str:
    """Return a page of Markdown as a notebook (nbformat 4.5), with its Python blocks as cells."""
    # The parts alternate between text and code.
    parts = enumerate(CODE_BLOCK.split(page))
    cells = [create_cell(number, part.strip("\n")) for number, part in parts if part.strip()]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def create_cell(number: int, text: str) -> dict[str, Any]:
    """Return a text cell, or for an odd number a code cell."""
    cell = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    if number % 2:
        return {"cell_type": "code", "execution_count": None, "outputs": [], **cell}
    return {"cell_type": "markdown", **cell}


if __name__ == "__main__":
    notebook = create_notebook(PAGE.read_text("utf-8"))
    PAGE.with_suffix(".ipynb").write_text(notebook, encoding="utf-8")
