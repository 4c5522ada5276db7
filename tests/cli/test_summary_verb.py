from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]
GOLDEN = Path(__file__).parent.parent / "golden"


def test_the_help_loads_no_torch():
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "for verb in ('summary', 'list', 'export'):\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_is_summarized_without_tables_and_pictures(digits_run: Run):
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "try: main(['summary', sys.argv[1]])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'pandas', 'pyarrow', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(digits_run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_and_what_it_is_published_with(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, table, err = cli("summary", "d2l_resnet18")
    assert code == 0, err
    assert "input        1x96x96" in table
    assert "11,178,378 trainable" in table
    assert max(map(len, table.splitlines())) <= 80
    assert "input        3x32x32" in cli("summary", "resnet20", "--channels", 3)[1]


def test_gluons_table_comes_out_byte_for_byte(cli: Cli, tmp_path: Path):
    golden = (GOLDEN / "gluon_resnet18_summary.txt").read_text()
    arguments = ("summary", "d2l_resnet18", "--image-size", 224, "--style", "gluon")
    assert cli(*arguments)[:2] == (0, golden)
    code, out, err = cli(*arguments, "--out", tmp_path / "table.txt")
    assert (code, out) == (0, "")
    assert "d2l_resnet18" in err
    assert (tmp_path / "table.txt").read_text() == golden


def test_traces(cli: Cli):
    code, text, _ = cli("summary", "d2l_resnet18", "--style", "trace")
    assert (code, text.splitlines()[0]) == (0, "Sequential output shape:\t torch.Size([1, 64, 24, 24])")
    code, text, _ = cli("summary", "d2l_resnet18", "--style", "trace-gluon")
    assert (code, text.splitlines()[0]) == (0, "conv5 output shape:\t (1, 64, 48, 48)")


def test_what_differs_from_resnet50_is_listed(cli: Cli):
    code, table, err = cli("summary", "seresnext26t_32x4d")
    assert code == 0, err
    listed = " ".join(table.split()).partition("differs from resnet50: ")[2]
    assert listed == ("depths=[2, 2, 2, 2], groups=32, width_per_group=4, stem='tiered', avg_down=True, attention='se'")
    assert "differs from" not in cli("summary", "resnet50")[1]
    described = json.loads(cli("summary", "plain18", "--json")[1])
    assert described["differs_from_resnet50"] == {"block": "basic", "depths": [2, 2, 2, 2], "shortcut": "none"}


def test_any_field_can_be_set(cli: Cli):
    arguments = ("--set", "depths=[1,1]", "--set", "widths=[8,16]", "--set", "parts=scratch", "--set", "num_classes=7")
    code, table, err = cli("summary", "resnet20", *arguments)
    assert code == 0, err
    assert "linear 7" in table
    assert "layer3" not in table
    assert cli("summary", "resnet20", "--set", "shortcut=C")[1] == cli("summary", "resnet20", "--shortcut", "C")[1]


def test_compound_scaling_shows_its_steps_and_efficientnets(cli: Cli, digits_run: Run):
    code, table, err = cli("summary", "resnet18", "--phi", 2)
    assert code == 0, err
    assert "resnet18, phi 2" in table
    assert "input        3x296x296" in table
    rows = [line.split() for line in table.splitlines() if line.strip().startswith(tuple("01234567")) and " B" in line]
    assert [row[0] for row in rows] == list("01234567")
    assert rows[0][6:8] == ["11.7", "1.8"]  # millions of parameters, billions of MACs
    scaling = table[table.index("Compound scaling") :]
    assert "…" not in scaling and max(len(line.rstrip()) for line in scaling.splitlines()) <= 80
    assert rows[4][1:4] + rows[4][-4:] == ["2.07", "1.46", "1.75", "B4", "1.8", "1.4", "380"]
    code, _, err = cli("summary", digits_run.path, "--phi", 1)
    assert code == 2
    assert "phi" in err


@pytest.mark.parametrize("field", ["image_size", "name"])
def test_arguments_that_are_no_fields_are_told_as_such(cli: Cli, field: str):
    code, _, err = cli("summary", "resnet18", "--set", f"{field}=3")
    assert code == 2
    assert f"a network has no field '{field}'" in err


def test_json(cli: Cli, tmp_path: Path):
    code, text, _ = cli("summary", "resnet18", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["totals"] == {
        "parameters": 11_689_512,
        "fixed": 9_600,
        "macs": 1_814_073_344,
        "flops": 3_628_146_688,
        "activation_bytes": 29_910_944,
    }
    assert (found["model"], found["input_shape"], found["output_shape"]) == ("resnet18", [3, 224, 224], [1000])
    assert found["layers"][0]["computes"] == "7x7 64 /2"
    cli("summary", "resnet18", "--out", tmp_path / "resnet18.json")
    assert json.loads((tmp_path / "resnet18.json").read_text()) == found


def test_drawings(cli: Cli, tmp_path: Path):
    code, svg, _ = cli("summary", "resnet20", "--svg")
    assert code == 0
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    cli("summary", "resnet20", "--out", tmp_path / "a.SVG")
    cli("summary", "resnet20", "--svg", "--out", tmp_path / "b.txt")
    assert (tmp_path / "a.SVG").read_text() == (tmp_path / "b.txt").read_text() == svg
    cli("summary", "resnet20", "--style", "trace", "--out", tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().startswith("conv1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "b.txt", "c.svg"]


def test_one_block_is_drawn(cli: Cli, tmp_path: Path):
    code, svg, _ = cli("summary", "resnet20", "--block", "stage2.block1")
    assert code == 0
    assert ElementTree.fromstring(svg).findtext("{http://www.w3.org/2000/svg}title") == "stage2.block1 of resnet20"
    cli("summary", "resnet20", "--svg", "--block", "stage2.block1", "--out", tmp_path / "block.svg")
    assert (tmp_path / "block.svg").read_text() == svg
    code, _, err = cli("summary", "resnet20", "--block", "stage2")
    assert code == 2
    assert "stage2.block1" in err
    code, _, err = cli("summary", "resnet20", "--block", "stage2.block1", "--json")
    assert code == 2
    assert "--json" in err


def test_a_run_and_its_weights(cli: Cli, digits_run: Run):
    for source in (digits_run.path, digits_run.weights):
        code, text, err = cli("summary", source, "--json")
        assert code == 0, err
        found = json.loads(text)
        assert (found["input_shape"], found["totals"]["parameters"]) == ([1, 8, 8], 269_434)


def test_a_run_and_its_weights_show_file_and_layers(cli: Cli, digits_run: Run):
    for source in (digits_run.path, digits_run.weights):
        code, text, err = cli("summary", source)
        assert code == 0, err
        for fact in ("a network of resnetlab", "matches the content", "digits", "quick", "269,434", "layer3.0"):
            assert fact in text
    code, text, err = cli("summary", digits_run.path, "--tensors")
    assert code == 0, err
    assert "layer3.2.conv2.weight" in text
    assert "image per" not in text and "M MACs" not in text


def test_files_of_others_show_their_contents(cli: Cli, tmp_path: Path):
    torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.zeros(10, 4)}}, tmp_path / "a.pth")
    code, text, err = cli("summary", tmp_path / "a.pth")
    assert code == 0, err
    for fact in ("torch.save", "'state_dict'", "fc.weight", "10x4", "epoch"):
        assert fact in text
    code, _, err = cli("summary", tmp_path / "a.pth", "--json")
    assert code == 2
    assert "a.pth" in err


def test_a_damaged_file_is_said_to_be(cli: Cli, digits_run: Run, tmp_path: Path):
    content = bytearray(digits_run.weights.read_bytes())
    content[-3] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    code, text, _ = cli("summary", tmp_path / "damaged.safetensors")
    assert (code, "DOES NOT MATCH" in text, "M MACs" in text) == (0, True, False)


def test_tensors_are_those_of_a_file(cli: Cli, digits_run: Run):
    for arguments in (("resnet20", "--tensors"), (digits_run.path, "--tensors", "--json")):
        code, out, err = cli("summary", *arguments)
        assert (code, out, "--tensors" in err) == (2, "", True)


def test_a_network_wins_over_a_file_called_like_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20").mkdir()
    assert "269,722 trainable" in cli("summary", "resnet20")[1]
    code, _, err = cli("summary", "./resnet20")
    assert (code, "is not a run" in err) == (2, True)


MISTAKES = {
    "an unknown network": (["resnet19"], "unknown model 'resnet19'. Did you mean 'resnet18'?"),
    "a path that does not exist": (["runs/nope"], "'runs/nope' is neither an existing path"),
    "an unknown style": (["resnet20", "--style", "tabel"], "unknown style 'tabel'. Did you mean 'table'?"),
    "two ways to show": (["resnet20", "--svg", "--json"], "expected one of --style, --svg and --json, got --svg and"),
    "an unknown field": (["resnet20", "--set", "stm=cifar"], "no field 'stm'. Did you mean 'stem'?"),
    "no value": (["resnet20", "--set", "stem"], "--set expects KEY=VALUE, such as --set shortcut=C, got 'stem'"),
    "one field twice": (["resnet20", "--stem", "cifar", "--set", "stem=deep"], "stem is set twice"),
    "no pixels": (["resnet20", "--image-size", "0"], "image_size must be an integer of at least 1, got 0"),
    "a folder to write to": (["resnet20", "--out", "."], "summary.svg"),
    "no folder to write to": (["resnet20", "--out", "gone/a.svg"], "does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
):
    monkeypatch.chdir(tmp_path)
    arguments, words = MISTAKES[mistake]
    code, out, err = cli("summary", *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_trained_network_cannot_be_changed(cli: Cli, digits_run: Run):
    code, _, err = cli("summary", digits_run.path, "--shortcut", "B", "--channels", 3)
    assert code == 2
    assert "already trained" in err and "in_channels, shortcut" in err


def test_networks_of_your_own_and_of_timm(cli: Cli, tmp_path: Path):
    own = tmp_path / "mynet.py"
    own.write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes, in_channels=3, width=4):\n"
        "        layers = nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "        super().__init__(*layers, nn.Linear(width, num_classes))\n"
    )
    code, text, err = cli("summary", f"{own}:Net", "--channels", 1, "--classes", 5, "--set", "width=8", "--json")
    found = json.loads(text)
    assert (code, "executing" in err) == (0, True)
    assert (found["input_shape"], found["output_shape"], found["depth"]) == ([1, 224, 224], [5], 2)
    assert found["totals"]["parameters"] == 8 * 10 + 5 * 9
    code, text, err = cli("summary", "timm:resnet18", "--style", "trace", "--image-size", 64)
    assert (code, text.splitlines()[-1].split()[0]) == (0, "fc"), err

    code, _, err = cli("train", "digits", "--model", f"{own}:Net", "--epochs", 1, "--limit", 20, "--out",
                       tmp_path / "run")  # fmt: skip
    assert code == 0, err
    code, text, err = cli("summary", tmp_path / "run")
    assert (code, "--model FILE.py:NAME" in err, "executing" in err) == (0, True, False)
    code, text, err = cli("summary", tmp_path / "run", "--model", f"{own}:Net", "--json")
    assert (code, json.loads(text)["output_shape"]) == (0, [10]), err
    code, _, err = cli("summary", "resnet18", "--model", f"{own}:Net")
    assert (code, f"resnetlab summary {own}:Net" in " ".join(err.split())) == (2, True)
