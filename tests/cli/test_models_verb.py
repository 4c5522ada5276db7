from __future__ import annotations

import json
from collections.abc import Callable

from resnetlab.models.catalog import CATALOG

Cli = Callable[..., tuple[int, str, str]]


def test_the_catalog_is_listed_within_a_hundred_columns(cli: Cli):
    code, table, err = cli("models")
    assert code == 0, err
    names = [line.split()[0] for line in table.splitlines() if line.strip()]
    assert [name for name in names if name in CATALOG] == list(CATALOG)
    assert max(map(len, table.splitlines())) <= 100
    assert "FLOPs are twice as many" in table


def test_families_stand_apart_and_inputs_are_as_published(cli: Cli):
    lines = [" ".join(line.split()) for line in cli("models", "*resnet*")[1].splitlines()]
    assert lines[lines.index("resnet152 60,192,808 11,513,626,624 3x224x224 He et al. 2016") + 1] == ""
    (small,) = [line for line in lines if line.startswith("small_resnet14")]
    assert small == "small_resnet14 2,776,522 321,580,544 1x28x28 Imagenette tutorial"


def test_a_pattern_chooses(cli: Cli):
    code, text, _ = cli("models", "wide*", "--json")
    assert code == 0
    assert json.loads(text) == [
        {
            "name": name,
            "parameters": parameters,
            "macs": macs,
            "flops": 2 * macs,
            "input_shape": [3, 224, 224],
            "source": "Zagoruyko and Komodakis 2016",
        }
        for name, parameters, macs in (
            ("wide_resnet50_2", 68_883_240, 11_398_021_120),
            ("wide_resnet101_2", 126_886_696, 22_753_050_624),
        )
    ]


def test_a_pattern_without_a_match(cli: Cli):
    code, out, err = cli("models", "wrn-28-10")
    assert (code, out) == (2, "")
    assert "no network is called 'wrn-28-10'. Did you mean 'wrn28_10'?" in err
    assert "`resnetlab models` lists all of them." in err
