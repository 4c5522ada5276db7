from __future__ import annotations

from importlib.util import find_spec

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from resnetlab.core.console import is_live, notice, output, padded, render, shortened, wrapped


def test_results_go_to_standard_output_and_messages_to_standard_error(capsys: pytest.CaptureFixture[str]):
    output().print("a result")
    notice("a [bold]message[/]" + " word" * 40)
    assert capsys.readouterr() == ("a result\n", "a [bold]message[/]" + " word" * 40 + "\n")


def test_a_command_of_a_notebook_moves_no_cursor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as the kernels of notebooks do
    assert output().is_terminal
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not output().is_terminal


def test_a_notebook_without_widgets_shows_no_bars():
    assert is_live(Console(force_jupyter=True)) == (find_spec("ipywidgets") is not None)
    assert is_live(Console(force_terminal=True, force_jupyter=False))


def test_what_a_notebook_prints_has_no_escape_codes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert render(Text("a heading", style="bold")) == "a heading"


@pytest.mark.parametrize("word", ["word", "写真", "a-class-name-of-one-hundred-characters-" + "x" * 61, "猫" * 60])
def test_wrapped_lines_fit_and_keep_their_words(word: str):
    lines = wrapped(" ".join([word] * 30)).splitlines()
    assert "".join(lines).replace(" ", "") == word * 30
    assert all(cell_len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    "kept",
    [
        "/a/path/that/is/not/broken/" + "x" * 90,
        "resnetlab train --resume runs/of-a-long-name --epochs 20 --device cuda:1 --set 'model.shortcut=C' photos.",
        "`resnetlab train photos/ --pretrained runs/many-photos --recipe finetune --set augment.flip=false`,",
        "resnetlab evaluate RUN --data FOLDER --model FILE.py:NAME --split validation --device cpu",
    ],
)
def test_what_can_be_copied_stays_on_one_line(kept: str):
    assert kept in wrapped(f"{'word ' * 13}{kept} {'word ' * 13}").splitlines()


def test_lines_with_a_label_and_line_breaks_are_kept():
    message = f"weights     a folder with spaces/{'of a run ' * 10}\n  an indented line"
    assert wrapped(message) == message


def test_texts_are_shortened_and_padded_by_columns():
    assert shortened("short", 10) == "short"
    assert shortened("a long text", 8) == "a long…"
    assert cell_len(shortened("長い名前です", 8)) <= 8
    assert [cell_len(padded(text, 9)) for text in ("a", "長い名前です", "a longer text")] == [9, 9, 9]
