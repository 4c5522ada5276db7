from __future__ import annotations

import pytest

from resnetlab.core.console import notice, output


def test_results_go_to_standard_output_and_messages_to_standard_error(capsys: pytest.CaptureFixture[str]):
    output().print("a result")
    notice("a [bold]message[/]")
    assert capsys.readouterr() == ("a result\n", "a [bold]message[/]\n")


def test_a_wrapped_message_fits_a_terminal_and_keeps_its_words(capsys: pytest.CaptureFixture[str]):
    words = ["word"] * 40 + ["/a/path/that/is/not/broken/" + "x" * 90]
    notice(" ".join(words), wrap=True)
    err = capsys.readouterr().err
    assert err.split() == words
    assert all(len(line) <= 80 or " " not in line for line in err.splitlines())
    notice(" ".join(words))
    assert len(capsys.readouterr().err.splitlines()) == 1
