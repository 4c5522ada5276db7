"""`resnetlab list`: the available networks, recipes, studies, lessons and parts."""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.core.console import output
from resnetlab.core.errors import UserError, nearest, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from resnetlab.studies.lab.question import Question

NAME = "list"


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="models, recipes, studies, lessons or parts.")],
    pattern: Annotated[
        str, typer.Argument(help="A name, or a shell pattern in quotes, such as 'wide*'.", show_default=False)
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    fields: Annotated[
        bool,
        typer.Option(
            "--fields", help="List the fields of a network or recipe instead, with values, defaults and meaning."
        ),
    ] = False,
) -> None:
    """List the available networks, recipes, studies, lessons or parts.

    Parts are what a network or a recipe names: blocks, activations, losses, optimizers and the like, your own included.

    If you give the full name of a recipe or a study, all its details are shown.

    resnetlab list models 'wide*'

    resnetlab list recipes quick

    resnetlab list recipes --fields
    """
    kinds = {"models": _models, "recipes": _recipes, "studies": _studies, "lessons": _lessons, "parts": _parts}
    if kind not in kinds:
        raise unknown("kind", kind, kinds)
    if fields:
        _fields(kind, pattern, as_json)
    else:
        kinds[kind](pattern, as_json)


def _models(pattern: str, as_json: bool) -> None:
    from resnetlab.models.catalog import CATALOG, list_models

    rows = [_model_row(name) for name in _checked(list_models(pattern), "models", pattern, CATALOG)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = _table("name", "parameters", "MACs", "input", "source", numbers=("parameters", "MACs", "input"))
    before = None
    for row in rows:  # a gap between one family and the next
        family = (re.sub(r"\d+", "#", row["name"]), row["input_shape"])
        if before not in (None, family):
            table.add_row()
        before = family
        shape = "x".join(map(str, row["input_shape"]))
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['macs']:,}", shape, row["source"])
    output().print(table)
    _hint(
        "MACs: multiply-accumulates of convolutions and linear layers for one image; FLOPs are twice as many. "
        "`resnetlab summary NAME` shows the layers."
    )


def _model_row(name: str) -> dict[str, Any]:
    from resnetlab.models.catalog import CATALOG, model_config
    from resnetlab.models.summary import count

    entry, config = CATALOG[name], model_config(name)
    parameters, macs = count(config, entry.image_size)
    return {
        "name": name,
        "parameters": parameters,
        "macs": macs,
        "flops": 2 * macs,
        "input_shape": [config.in_channels, entry.image_size, entry.image_size],
        "source": entry.source,
    }


def _recipes(pattern: str, as_json: bool) -> None:
    from rich.markup import escape

    from resnetlab.training.recipes import RECIPES, resolve_recipe

    names = _checked(fnmatch.filter(RECIPES, pattern), "recipes", pattern, RECIPES)
    texts = {name: inspect.getdoc(RECIPES[name]) or "" for name in names}
    if as_json:
        rows = [{**resolve_recipe(name).to_dict(), "description": texts[name]} for name in names]
        typer.echo(json.dumps(rows, indent=2))
        return
    if names == [pattern]:
        output().print(escape(texts[pattern]), soft_wrap=True)
        output().print()
        output().print(_recipe_table(pattern))
        if pattern == "photos":
            output().print()
            output().print(_plan_table())
        return
    table = _table("recipe", "purpose")
    for name, text in texts.items():
        table.add_row(name, escape(text.splitlines()[0]))
    output().print(table)
    _hint(
        "`resnetlab list recipes NAME` shows the details of one recipe. `resnetlab train --set KEY=VALUE` changes a "
        "field."
    )


def _recipe_table(name: str) -> Table:
    """Returns the fields of a recipe; of its augmentation only those that differ from the default."""
    from rich.markup import escape

    from resnetlab.training.recipe import Recipe
    from resnetlab.training.recipes import resolve_recipe

    values, defaults = resolve_recipe(name).to_dict(), Recipe().to_dict()
    augment, default_augment = values.pop("augment"), defaults.pop("augment")
    rows = [(key, value, defaults.get(key)) for key, value in values.items() if key != "name"]
    rows += [
        (f"augment.{key}", value, default_augment.get(key))
        for key, value in augment.items()
        if value != default_augment.get(key)
    ]
    table = _table("field", "value", "")
    for key, value, default in rows:
        if (name, key) == ("photos", "epochs"):
            value = "by photos, below"
        differs = "" if value == default else f"[dim]default: {escape(_shown(default))}[/]"
        table.add_row(key, escape(_shown(value)), differs)
    return table


def _plan_table() -> Table:
    """Returns the epochs of the recipe `photos` by the number of training photos."""
    from resnetlab.training.prepare import PHOTO_PLANS

    numbers = ("training photos, up to", "epochs", "pixels")
    table = _table(*numbers, "network", numbers=numbers)
    for plan in PHOTO_PLANS:
        table.add_row(f"{plan.photos:,}", str(plan.epochs), str(plan.image_size), plan.network)
    return table


def _parts(pattern: str, as_json: bool) -> None:
    from rich.markup import escape

    from resnetlab.training.registration import REGISTRIES

    found = [(registry, name) for registry in REGISTRIES.values() for name in registry]
    names = _checked(fnmatch.filter(dict.fromkeys(name for _, name in found), pattern), "parts", pattern, ())
    rows = [
        {"kind": one.kind, "name": name, "own": name in one.added, "description": one.describe(name)}
        for one, name in found
        if name in names
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = _table("kind", "name", "own", "description")
    for row in rows:
        table.add_row(row["kind"], row["name"], "yes" if row["own"] else "", escape(row["description"]))
    output().print(table)
    _hint("`--import FILE.py` adds your own (docs/your-own.md).")


def _studies(pattern: str, as_json: bool) -> None:
    from resnetlab.studies import QUESTIONS

    questions = {question.name: question for question in QUESTIONS}
    names = _checked(fnmatch.filter(questions, pattern), "studies", pattern, questions)
    if as_json:
        typer.echo(json.dumps([vars(questions[name]) for name in names], indent=2))
        return
    if names == [pattern]:
        _print_question(questions[pattern])
        return
    table = _table("study", "question", "source")
    for name in names:
        table.add_row(name, questions[name].title, questions[name].source)
    output().print(table)
    _hint("`resnetlab list studies NAME` shows the published results; `resnetlab study NAME DATA` tests the claim.")


def _print_question(question: Question) -> None:
    import pandas as pd
    from rich.markup import escape

    from resnetlab.studies.lab.question import as_table

    console = output()
    console.print(f"[bold]{escape(question.title)}[/]\n")
    console.print(f"claim: {escape(question.claim)}")
    console.print(f"source: {escape(question.source)}")
    console.print(f"protocol: {escape(question.protocol)}\n")
    if question.published:
        console.print(as_table(pd.DataFrame(list(question.published)), "published"))
    _hint(f"Test it on your images: resnetlab study {question.name} DATA")


def _lessons(pattern: str, as_json: bool) -> None:
    from resnetlab.lessons.learn import KINDS, learn

    titles = learn()
    names = _checked(fnmatch.filter(titles, pattern), "lessons", pattern, titles)
    if as_json:
        rows = [{"name": name, "kind": KINDS[name], "title": titles[name]} for name in names]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = _table("name", "kind", "title")
    for name in names:
        table.add_row(name, KINDS[name], titles[name])
    output().print(table)
    _hint("`resnetlab learn NAME` writes a lesson or an exercise; `resnetlab check FILE` answers an exercise.")


def _fields(kind: str, pattern: str, as_json: bool) -> None:
    from resnetlab.core.fields import REQUIRED, describe_fields

    if kind == "models":
        from resnetlab.models.config import ResNetConfig as Configuration
    elif kind == "recipes":
        from resnetlab.training.recipe import Recipe as Configuration
    else:
        raise UserError("--fields lists the fields of models and recipes. For a study: resnetlab study NAME --help")
    described = {field.name: field for field in describe_fields(Configuration)}
    names = _checked(fnmatch.filter(described, pattern), f"{kind} --fields", pattern, described)
    rows = [
        {
            "name": name,
            "default": "required" if described[name].default is REQUIRED else described[name].default,
            "values": described[name].values,
            "description": described[name].description,
            "group": described[name].group,
        }
        for name in names
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    for group in dict.fromkeys(row["group"] for row in rows):
        if group:
            output().print(f"\n[bold]{group}[/]")
        output().print(_field_table([row for row in rows if row["group"] == group]))
    prefix = "model." if kind == "models" else ""
    _hint(f"To change a field: resnetlab train DATA --set {prefix}FIELD=VALUE")


def _field_table(rows: list[dict[str, Any]]) -> Table:
    from rich.markup import escape

    table = _table("field", "default", "meaning and values")
    table.columns[1].max_width = 18
    for row in rows:
        meaning = f"{escape(row['description'].rstrip('.'))}. [dim]{escape(row['values'])}[/]"
        table.add_row(row["name"], escape(_shown(row["default"])), meaning)
    return table


def _table(*headings: str, numbers: Iterable[str] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        is_number = heading in numbers
        justify = "right" if is_number else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=is_number or place == 0)
    return table


def _hint(text: str) -> None:
    output().print(f"\n{text}", style="dim")


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value).lower()


def _checked(found: list[str], kind: str, pattern: str, known: Iterable[str]) -> list[str]:
    if not found:
        raise UserError(f"nothing matches {pattern!r}. {nearest(pattern, known)}To see all, run: resnetlab list {kind}")
    return found
