"""Export of a network to a page: what is written, in which precision, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.data.load import load_data
from resnetlab.exporting.html import LIMIT
from resnetlab.models.architectures import build, open_architecture, with_sizes
from resnetlab.models.blocks import BLOCK_CLASSES, BasicBlock, register_block


def trained(digits, name="resnet20", **fields):
    """A network that looks trained: it knows classes and preprocessing."""
    torch.manual_seed(0)
    network = resnetlab.create_model(name, **{"in_channels": 1, "num_classes": 10, "depths": (1, 1, 1), **fields})
    network.class_names, network.preprocessing = digits.class_names, digits.preprocessing
    return network.eval()


def page_of(source, path, **options):
    """The path of a page that was written, and its record."""
    exported = resnetlab.export(source, "html", out=path, **options)
    assert exported.record is not None
    return exported.path, exported.record


def saved(path, network):
    resnetlab.save(path, network)
    return path


def test_a_run_is_exported_with_its_own_test_images(digits_run, tmp_path):
    path, record = page_of(digits_run, tmp_path)
    text = path.read_text()
    assert path.name == "model.html" and record["size"] == len(text.encode()) < LIMIT and record["rounding"] <= 5e-4
    assert "resnet20" in text and '"data":"digits"' in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", text)


def test_a_file_needs_images(digits, tmp_path):
    path = saved(tmp_path / "m.safetensors", trained(digits))
    with pytest.raises(UserError, match="data"):
        resnetlab.export(path, "html", out=tmp_path / "model.html")
    assert resnetlab.export(path, "html", out=tmp_path / "model.html", data=digits).path.is_file()
    assert resnetlab.export(path, "html", out=tmp_path / "model.html", data="digits").path.is_file()
    with pytest.raises(UserError, match="8 and 1"):
        resnetlab.export(path, "html", out=tmp_path / "other.html", data=load_data("digits", image_size=9))


def test_weights_stay_in_float32_where_half_precision_changes_answers(digits, tmp_path):
    network = trained(digits)
    with torch.no_grad():
        for name, factor in (("fc", 10), ("conv1", 1e-8), ("bn1", 1e8)):  # half precision has no such small numbers
            network.get_parameter(f"{name}.weight").mul_(factor)
    path = saved(tmp_path / "m.safetensors", network)
    assert page_of(path, tmp_path / "model.html", data=digits)[1]["precision"] == "float32"


def test_names_of_classes_cannot_leave_their_place(digits, tmp_path):
    network = trained(digits)
    names = ["</script><script>alert(1)</script>", *digits.class_names[1:]]
    data = load_data("digits", limit=200)
    object.__setattr__(data, "class_names", tuple(names))
    network.class_names = tuple(names)
    path = saved(tmp_path / "m.safetensors", network)
    assert "<script>alert" not in page_of(path, tmp_path / "model.html", data=data)[0].read_text()


def test_networks_that_a_page_cannot_run_are_refused_with_the_reason(digits, tmp_path):
    def refused(network, reason):
        path = saved(tmp_path / "m.safetensors", network)
        with pytest.raises(UserError, match=reason):
            resnetlab.export(path, "html", out=tmp_path / "model.html", data=digits)
        assert not (tmp_path / "model.html").exists()

    refused(trained(digits, "resnet56", widths=(64, 128, 128), depths=(2, 2, 2)), "MB")
    large = trained(digits)
    large.preprocessing = dataclasses.replace(digits.preprocessing, image_size=448)
    refused(large, "million")

    class Doubled(BasicBlock):
        def flow(self, x):
            flow = super().flow(x)
            return flow._replace(output=2 * flow.output)

    register_block("doubled", Doubled)
    try:
        refused(trained(digits, block="doubled"), "stage1.block1")
    finally:
        BLOCK_CLASSES.remove("doubled")


def test_a_network_of_another_library_is_refused(digits, tmp_path):
    pytest.importorskip("timm")
    network = build(with_sizes(open_architecture("timm:resnet10t", {}), in_channels=1, num_classes=10))
    network.class_names, network.preprocessing = digits.class_names, digits.preprocessing
    with pytest.raises(UserError, match="onnx"):
        resnetlab.export(network, "html", out=tmp_path / "model.html", data=digits)


def test_the_shell_writes_the_page_of_a_packaged_network(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("export", "digits", "--to", "html")
    assert code == 0 and Path("digits-export/model.html").is_file() and "MB" in err, err
    code, _, err = cli("export", "digits", "--out", "page.html")
    assert code == 0 and Path("page.html").is_file(), err
    assert cli("export", "digits", "--to", "html", "--int8")[0] == 2
