"""`resnetlab recipes`: the named recipes, and what is in one."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

NAME = "recipes"


def command(
    name: Annotated[str | None, typer.Argument(help="A recipe: show all of it.")] = None,
) -> None:
    """List the named recipes, or explain one: what it is for, what was measured, and each of its values.

    resnetlab recipes

    resnetlab recipes quick
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.training.recipe import Recipe
    from resnetlab.training.recipes import RECIPES, resolve_recipe

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=100, highlight=False)
    if name is None:
        table = Table("recipe", "what it is", box=None, padding=(0, 3, 0, 0), pad_edge=False)
        for key, make in RECIPES.items():
            table.add_row(key, escape(inspect.getdoc(make).splitlines()[0]))  # type: ignore[union-attr]
        console.print(table)
        console.print("\nEach in full: resnetlab recipes NAME. To change a value: resnetlab train --set KEY=VALUE")
        return
    recipe, usual = resolve_recipe(name), Recipe()
    console.print(escape(inspect.getdoc(RECIPES[name]) or ""), soft_wrap=True)
    table = Table("field", "value", "", box=None, padding=(0, 3, 0, 0), pad_edge=False)
    for key, value, plain in _fields(recipe, usual):
        usually = "" if value == plain else f"[dim]without a recipe: {escape(_shown(plain))}[/]"
        table.add_row(key, escape(_shown(value)), usually)
    console.print()
    console.print(table)


def _fields(recipe: object, usual: object) -> list[tuple[str, object, object]]:
    """Returns name, value and usual value of every field; of an augmentation only those that are set otherwise."""
    values, plain = recipe.to_dict(), usual.to_dict()  # type: ignore[attr-defined]
    augment, plain_augment = values.pop("augment"), plain.pop("augment")
    rows = [(key, value, plain.get(key)) for key, value in values.items() if key != "name"]
    return rows + [
        (f"augment.{key}", value, plain_augment.get(key))
        for key, value in augment.items()
        if value != plain_augment.get(key)
    ]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value).lower()
