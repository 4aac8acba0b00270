"""Write the tutorial as a notebook, tutorial.ipynb from tutorial.md: `python docs/notebook.py`."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)


def create_notebook(page: str) -> str:
    """Return a page of Markdown as a notebook (nbformat 4.5), with its Python blocks as cells."""
    cells: list[dict[str, Any]] = []
    # The parts alternate between text and code.
    for number, part in enumerate(CODE_BLOCK.split(page)):
        if part.strip():
            source = part.strip("\n").splitlines(keepends=True)
            cell = {"id": f"cell-{number}", "metadata": {}, "source": source}
            code = {"cell_type": "code", "execution_count": None, "outputs": []}
            cells.append((code if number % 2 else {"cell_type": "markdown"}) | cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    notebook = create_notebook(PAGE.read_text("utf-8"))
    PAGE.with_suffix(".ipynb").write_text(notebook, encoding="utf-8")
