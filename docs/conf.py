"""The documentation site: pages of docs/, lessons with their outputs, and the reference from docstrings.

`make docs` builds it. Outputs of lessons come from docs/lessons/outputs; a lesson that was changed since then is
executed. `make docs EXECUTE="d2l gluon"` executes these lessons, and `EXECUTE=all` executes all of them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from jupyter_cache import get_cache
from jupyter_cache.base import CachingError

import resnetlab
from resnetlab.lessons.lesson import LESSONS, get_lesson, notebook_text

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BUILD = ROOT / "build"

# Pages whose text is a file outside docs/; what docs/ contains under these names is a pointer for readers on GitHub.
OUTSIDE = {
    "attempts": "benchmarks/ATTEMPTS.md",
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}
PAGES = {ROOT / file: DOCS / f"{page}.md" for page, file in OUTSIDE.items()} | {ROOT / "README.md": DOCS / "index.md"}

project = "ResNetLab"
author = "The ResNetLab developers"
copyright = author
version = release = resnetlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["lessons/outputs"]
html_theme = "furo"
html_title = "ResNetLab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
default_role = "code"
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / "lessons-cache")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"

# Commands in lessons find this environment's program, and print lines that fit the page.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
os.environ["COLUMNS"] = "96"

NOTEBOOKS = BUILD / "notebooks"
NOTEBOOKS.joinpath("lessons").mkdir(parents=True, exist_ok=True)  # before Sphinx looks for it
html_extra_path = [str(NOTEBOOKS)]

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def use_stored_outputs(_: Any) -> None:
    """Puts the stored outputs into the cache, except those of lessons that are to be executed."""
    chosen = os.environ.get("EXECUTE", "").split()
    if unknown := set(chosen) - {*LESSONS, "all"}:
        sys.exit(f"EXECUTE takes lessons ({', '.join(LESSONS)}) or all, got {', '.join(sorted(unknown))}.")
    cache = get_cache(nb_execution_cache_path)
    if chosen:
        cache.clear_cache()
    for name in () if "all" in chosen else set(LESSONS) - set(chosen):
        stored = DOCS / "lessons" / "outputs" / f"{name}.ipynb"
        try:
            cache.cache_notebook_file(str(stored), check_validity=False)
        except CachingError:  # it is there already
            continue


def write_notebooks(_: Any) -> None:
    """Writes the notebooks that the pages of lessons link to."""
    for name in LESSONS:
        (NOTEBOOKS / "lessons" / f"{name}.ipynb").write_text(notebook_text(get_lesson(name)), encoding="utf-8")


def prepare(app: Any, page: str, source: list[str]) -> None:
    """Reads pages from outside docs/, turns their links to files into links to pages, and offers each notebook."""
    file = ROOT / OUTSIDE[page] if page in OUTSIDE else DOCS / f"{page}.md"
    if page in OUTSIDE:
        app.env.note_dependency(str(file))
        source[0] = file.read_text(encoding="utf-8")
    source[0] = LINK.sub(lambda found: linked(found, file, DOCS / f"{page}.md"), source[0])
    if page == "lessons/index" and LESSONS:
        source[0] += "\n".join(("\n```{toctree}", ":hidden:\n", *LESSONS, "```\n"))
    name = page.removeprefix("lessons/")
    if name != page and name in LESSONS:
        offer = (
            f'<p class="lesson-file">Run it yourself: <a href="{name}.ipynb" download>download the notebook</a>, or '
            f"<code>resnetlab learn {name}</code></p>"
        )
        text = re.sub(r"^(# .*)$", rf"\1\n\n{offer}", source[0], count=1, flags=re.MULTILINE)
        language = "language_info:\n  name: python\n  pygments_lexer: ipython3"  # stored outputs do not say it
        source[0] = text.replace("\nkernelspec:", f"\n{language}\nkernelspec:", 1)


def linked(found: re.Match[str], file: Path, page: Path) -> str:
    """Returns a link to a file as a link to its page on the site; only the text if the file has none."""
    picture, text, target, anchor = found.groups(default="")
    path = (file.parent / target).resolve()
    path = PAGES.get(path, path)
    if not path.is_relative_to(DOCS):
        return text
    return f"{picture}[{text}]({Path(os.path.relpath(path, page.parent)).as_posix()}{anchor})"


def mathml(writer: Any, node: nodes.Element) -> None:
    """Writes a formula as MathML, which browsers show without a script and without a request."""
    is_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=is_block)
    writer.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connects the functions above."""
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.connect("builder-inited", use_stored_outputs)
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", prepare)
