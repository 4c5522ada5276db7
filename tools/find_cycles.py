"""Fails if modules of the package import each other in a circle: `python tools/find_cycles.py [SOURCE_FOLDER]`.

Imports inside functions and under TYPE_CHECKING count. The root `__init__` is exempt, because it imports the public
names lazily. import-linter's layers check the direction between folders; this script checks modules within them too.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from pathlib import Path

PACKAGE = "resnetlab"


def find_modules(source: Path) -> dict[str, Path]:
    """Returns the file of every module below `source`, by dotted name, without the root `__init__`."""
    modules = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del modules[PACKAGE]
    return modules


def imports_of(name: str, modules: dict[str, Path]) -> set[str]:
    """Returns the modules of the package that module `name` imports, wherever in its file."""
    package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(modules[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: one dot is the package itself, each further dot one above it
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {member if member in modules else base for member in members}
    return {other for other in found if other in modules and other != name}


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Returns one circle of imports, its first module repeated at its end; None if there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))  # graphlib lists each module after the one that imports it
    return None


def main() -> int:
    """Prints a circle for every group of modules that has one; exit code 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=Path("src"), help="folder of the package (src)")
    modules = find_modules(parser.parse_args().source)
    graph = {name: imports_of(name, modules) for name in modules}
    count = 0
    while cycle := find_cycle(graph):
        count += 1
        print("circle of imports: " + " -> ".join(cycle))
        graph[cycle[0]].discard(cycle[1])  # look for further ones without this import
    print(f"{len(modules)} modules, {count} circles of imports")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
