"""The notebook view of a report: a table whose rows unfold to a block next to its reference."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from learners import RESNET18, changed

from resnetlab.checking.check import check
from resnetlab.checking.findings import SHOWN, CheckReport


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    twice = ("(out_channels, out_channels, 3, padding=1", "(out_channels, out_channels, 3, stride=stride, padding=1")
    source = changed(RESNET18, twice, ("self.relu(self.bn1(self.conv1(x))))", "self.relu(self.conv1(x)))"))
    path: Path = tmp_path_factory.mktemp("view") / "learner.py"
    path.write_text(source)
    return check(str(path), "resnet18", image_size=64)


def test_each_row_unfolds_to_its_block(report: CheckReport):
    page = ElementTree.fromstring(f"<body>{report._repr_html_()}</body>")
    rows = page.findall(".//tbody/tr")
    assert len(rows) == min(SHOWN, len(report.faults)) + len(report.findings) - len(report.faults)
    for row, finding in zip(rows, report.findings, strict=True):
        text = "".join(row.itertext())
        assert finding.place in text and finding.title in text and finding.why in text
        assert len(row.findall(".//details")) == 1
    drawings = [row.find(".//{http://www.w3.org/2000/svg}svg") for row in rows]
    stride = next(place for place, finding in enumerate(report.findings) if "stride" in finding.title)
    drawing = drawings[stride]
    assert drawing is not None
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "3x3 convolution to 128" in texts and texts.count("3x3 convolution to 128, stride 2") == 3
    assert "1x1 convolution to 128, stride 2" in texts  # the projection
    assert [row.find(".//details").get("open") is not None for row in rows][:2] == [True, False]  # type: ignore[union-attr]


def test_the_layers_of_a_block_travel_with_the_report(report: CheckReport):
    again = CheckReport.from_dict(report.to_dict())
    assert again.blocks == report.blocks
    assert again._repr_html_() == report._repr_html_()
    rows = report.blocks["stage2.block1"]
    assert [row["differs"] for row in rows].count(True) == 1
    total = next(row for row in rows if row["fork"])
    assert total["fork"] == [-1, -1] and len(total["shortcut"]) == 2
    missing = [row for row in report.blocks["stem"] if not row["found"]]
    assert [row["expected"] for row in missing] == ["normalization"]
