"""Tutorials as Jupyter notebooks: the pages themselves, cell by cell, without a second copy."""

from __future__ import annotations

import json
import re

_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:)[^)]+\)")


def notebook(markdown: str) -> str:
    """The text of an ``.ipynb`` file.

    Blocks of Python and of commands become code cells, what is around them cells of text. Links to
    other pages become their text, as a notebook that was downloaded has no pages beside it.
    """
    cells, end = [], 0
    for block in _BLOCK.finditer(markdown):
        prefix = "" if block[1] == "python" else "%%bash\n"
        cells += [_text(markdown[end : block.start()]), _code(prefix + block[2])]
        end = block.end()
    cells.append(_text(markdown[end:]))
    found = {
        "cells": [{**cell, "id": f"cell-{k}"} for k, cell in enumerate(cells) if cell["source"]],
        "metadata": {"kernelspec": _KERNEL, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def _text(markdown: str) -> dict[str, object]:
    return {"cell_type": "markdown", "metadata": {}, "source": _LINK.sub(r"\1", markdown).strip()}


def _code(source: str) -> dict[str, object]:
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {**cell, "source": source.rstrip()}
