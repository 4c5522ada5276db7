from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import resnetlab
from resnetlab.lessons.lesson import LESSONS, Lesson, notebook_of, read_lesson

TEXT = """---
kernelspec:
  name: python3
---

# A title

![A red dot](images/dot.png) and [training](../training.md#recipes), [this](#below), [a page](https://example.org/).

```{code-cell}
:tags: [hide-input, other]

x = 1
```

:::{dropdown} Why?
:open:

Because.
:::

:::{note}
Look.
:::

```{code-cell}
!resnetlab list models
```
"""


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dot.png").write_bytes(b"red")
    (tmp_path / "first.md").write_text(TEXT, encoding="utf-8")
    return read_lesson(tmp_path / "first.md")


def test_a_lesson_becomes_a_notebook_that_needs_nothing_else(lesson: Lesson):
    notebook = json.loads(json.dumps(notebook_of(lesson)))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds == ["markdown", "markdown", "code", "markdown", "code"]
    start, head, drawn, answer, command = ("".join(cell["source"]) for cell in notebook["cells"])
    assert "Colab" in start and "not tested" in start and "pip install" in start
    assert head.startswith("# A title\n") and "](data:image/png;base64,cmVk)" in head
    assert "docs/training.md" in head and "](#" not in head and "[a page](https://example.org/)" in head
    assert drawn == "x = 1" and command == "!resnetlab list models"
    assert notebook["cells"][2]["metadata"]["tags"] == ["hide-input", "other"]
    assert "<summary>Why?</summary>\n\nBecause.\n" in answer and "> Look." in answer and ":::" not in answer


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_written(name: str, tmp_path: Path):
    file = resnetlab.learn(name, out=tmp_path)
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert file.name == f"{name}.ipynb"
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert f"# {resnetlab.learn()[name]}" in text
    assert not re.search(r"^:::|\]\((?!https?://|data:image)", text, re.MULTILINE)
    with pytest.raises(resnetlab.UserError, match="exists"):
        resnetlab.learn(name, out=file)
