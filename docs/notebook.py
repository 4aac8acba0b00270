"""The tutorial as a notebook: `python docs/notebook.py` writes tutorial.ipynb from tutorial.md."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
BLOCK = re.compile(r"^```python\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)


def notebook(page: str) -> str:
    """A page of Markdown as a notebook (nbformat 4.5): its Python blocks are the code cells."""
    cells = [
        cell(number, text.strip("\n"), is_code=number % 2 == 1)
        # The texts between blocks, and the blocks, take turns.
        for number, text in enumerate(BLOCK.split(page))
        if text.strip()
    ]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": python, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def cell(number: int, text: str, *, is_code: bool) -> dict[str, Any]:
    shared = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    if is_code:
        return {"cell_type": "code", "execution_count": None, "outputs": [], **shared}
    return {"cell_type": "markdown", **shared}


if __name__ == "__main__":
    PAGE.with_suffix(".ipynb").write_text(notebook(PAGE.read_text("utf-8")), encoding="utf-8")
