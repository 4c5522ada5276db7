"""Runs that were never trained, and a parser for their pages."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import precision_recall_fscore_support

from resnetlab import Run
from resnetlab.core.files import write_json
from resnetlab.core.framing import Framing
from resnetlab.data.storage.store import ImageData, Split
from resnetlab.evaluation.calibration import expected_calibration_error, maximum_calibration_error, reliability
from resnetlab.evaluation.diagnostics import Diagnostics
from resnetlab.evaluation.embeddings import EmbeddingMap
from resnetlab.evaluation.metrics import confused_pairs, wilson_interval
from resnetlab.evaluation.result import Exploration
from resnetlab.models.catalog import model_config
from resnetlab.training.recipes import resolve_recipe

HOSTILE = '</script><b>$x$ & "y" %{x}\''


def make_data(names, *, per_class=12, size=8, channels=1, source="digits"):
    labels = torch.arange(len(names) * per_class) % len(names)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(labels), channels, size, size), generator=draw, dtype=torch.uint8)
    test = Split(images=images, labels=labels, index=torch.arange(len(labels)) * 3 + 5)
    framing = Framing(image_size=size, channels=channels)
    return ImageData(name="x", splits={"test": test}, class_names=tuple(names), mirrors=True, framing=framing,
                     arguments={"source": source, "split_seed": 0})  # fmt: skip


def make_run(folder, data, *, wrong=5, epochs=4, split="test", settings=None):
    """An evaluated run in which the first `wrong` images were taken for the class after theirs."""
    names = np.array(data.class_names, dtype=object)
    run = Run.create(
        folder,
        {
            "created": "2026-11-21T22:00:00+00:00",
            "seed": 7,
            "model": {"name": "resnet20", "config": model_config("resnet20", {"in_channels": 1}).to_dict()},
            "data": data.describe(),
            "preprocessing": {"image_size": data.image_size, "channels": data.channels},
            "recipe": resolve_recipe("quick", epochs=max(1, epochs), **{"augment.flip": False}).to_dict(),
            "machine": {"device": "cpu", "precision": "bfloat16"},
            **(settings or {}),
        },
        {"python": "3.11.7", "packages": {"torch": "2.15.0"}},
    )
    run.write_history(
        [
            {"epoch": epoch, "step": epoch * 9, "lr": 0.1 / epoch, "train_loss": 1 / epoch, "train_top1": 0.5,
             "val_loss": float("nan") if epoch == 1 else 1.5 / epoch, "val_top1": 0.25 * min(epoch, 3),
             "images_per_second": 1234.0, "seconds": 40.0 * epoch}
            for epoch in range(1, epochs + 1)
        ]
    )  # fmt: skip
    save_file({"weight": torch.zeros(10, 3), "norm.running_mean": torch.zeros(3)}, run.weights)
    evaluated = data.splits.get("test") or next(iter(data.splits.values()))
    labels = evaluated.labels.numpy()
    predictions = np.where(np.arange(len(labels)) < wrong, (labels + 1) % len(names), labels)
    losses = np.linspace(0.1, 2.0, len(labels))
    folder = run.evaluation()
    folder.mkdir()
    correct, sure = labels == predictions, np.linspace(0.2, 0.999, len(labels))
    images = pd.DataFrame(
        {"index": evaluated.index.numpy(), "label": names[labels],
         "prediction": names[predictions], "confidence": sure, "loss": losses, "correct": correct,
         "label_probability": np.where(correct, sure, 0.01)}
    )  # fmt: skip
    images["top5"] = [[name, *names[names != name][:4]] for name in images["prediction"]]
    images["top5_confidence"] = [[value, 0.02, 0.01, 0.01, 0.01][: min(5, len(names))] for value in sure]
    scores = precision_recall_fscore_support(labels, predictions, labels=range(len(names)), zero_division=0)  # type: ignore[arg-type]
    columns = dict(zip(("precision", "recall", "f1", "support"), scores, strict=True))
    low, high = wilson_interval(len(labels) - wrong, len(labels))
    tables = {
        "per_image": images,
        "per_class": pd.DataFrame({"class": names, **columns, "recall_low": 0.1, "recall_high": 0.9}),
        "reliability": reliability(sure, correct),
        "confused_pairs": confused_pairs(images["label"].tolist(), images["prediction"].tolist(), list(names)),
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    summary = {
        "split": split, "n": len(labels), "top1": 1 - wrong / len(labels), "top5": 0.9876, "loss": 0.4321,
        "top1_low": low, "top1_high": high, "ece": expected_calibration_error(sure, correct),
        "temperature": 0.5, "ece_uncalibrated": 0.1234,
        "mce": maximum_calibration_error(sure, correct),
    }  # fmt: skip
    write_json(folder / "summary.json", {"schema": 1, **summary})
    return run


class Page(HTMLParser):
    """A page's elements, the text people read, the rows of its tables, its pictures and sections.

    Attributes:
        elements: tag and attributes of each element, in order.
        text: all that is read, outside scripts and styles.
        rows: of all tables, cells as pairs of text and `data-value`.
        pictures_data: what each SVG gives the page's program, in order.
        svg_texts: what is written in each SVG.
        images: what the page's program knows of the images.
        sections: attributes of the sections by id.
    """

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding="utf-8")
        self.elements, self.texts, self.rows, self.scripts, self.inside, self.in_cell = [], [], [], [], "", False
        self.svg_texts, self.sections, self.contents = [], {}, {}
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.texts))
        self.pictures_data = [json.loads(text) for text in self.scripts if text.startswith('{"box"')]
        self.images = next(json.loads(text) for text in self.scripts if text.startswith('{"names"'))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.inside = tag
        if tag == "section":
            self.sections[attributes["id"]] = attributes
            self.contents[attributes["id"]] = set()
        elif self.contents:
            self.contents[next(reversed(self.contents))].add(tag)
        if tag == "svg":
            self.svg_texts.append([])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", attributes.get("data-value")])
            self.in_cell = True

    def handle_endtag(self, tag):
        self.inside = ""
        if tag in ("td", "th"):
            self.in_cell = False
        if tag in ("li", "tr", "p", "th", "td", "br"):
            self.texts.append(" ")

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside == "text":
            self.svg_texts[-1].append(data)
        elif self.inside != "style":
            self.texts.append(data)
            if self.in_cell and self.inside != "small":
                self.rows[-1][-1][0] += data.strip()

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def missing(self):
        """The sections that lack data, by id, and what they say."""
        return {name: item["data-missing"] for name, item in self.sections.items() if "data-missing" in item}

    def confusion(self):
        """What the confusion matrix gives the page's program."""
        return next(data for data in self.pictures_data if "cells" in data)

    def pictures(self):
        return [decoded(image["src"]) for image in self.attributes("img")]

    def classes(self):
        """The rows of the table of classes, without that of its headings."""
        return [row for row in self.rows if len(row) == 6 and row[1][1] is not None]


def decoded(uri):
    """The picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2])))


def add_exploration(run, data, *, blocks=("stage1.block1", "stage2.block1")):
    """Puts a map and the figures of blocks into a run's evaluation."""
    table = pd.read_parquet(run.evaluation() / "per_image.parquet")
    draws = np.random.default_rng(0)
    places = {name: draws.normal(size=len(table)) for name in ("x", "y", "pca_x", "pca_y")}
    points = table[["index", "label"]].assign(**places)
    figures = ("ratio", "cosine", "variance_share", "lesion_top1", "lesion_loss", "top1_cost", "loss_cost")
    values = {name: draws.uniform(0.1, 0.6, len(blocks)) for name in figures}
    layers = [f"{name}.conv{number}" for name in blocks for number in (1, 2)]
    responses = draws.uniform(0.5, 1.5, len(layers))
    rank = pd.Series(responses).rank(ascending=False).astype("int64")
    exploration = Exploration(
        map=EmbeddingMap(
            points=points, method="tsne", neighbor_accuracy=0.9321, map_accuracy=0.8765, explained=(0.3, 0.2),
            pca_accuracy=0.7654,
        ),
        diagnostics=Diagnostics(
            images=len(table), top1=0.9, loss=0.4,
            blocks=pd.DataFrame({"block": list(blocks), "kind": ["identity"] * len(blocks), **values}),
            responses=pd.DataFrame({"layer": layers, "response": responses, "rank": rank}),
        ),
    )  # fmt: skip
    exploration.save(run.evaluation())
    return exploration
