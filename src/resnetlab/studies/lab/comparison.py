"""Several kinds of training against one of them: the cells, the differences, and a verdict that counts comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import pandas as pd

from resnetlab.models.catalog import config_for_data
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.noise import BEYOND, Difference, difference
from resnetlab.studies.lab.outside import OutsideConfig
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN, Verdict

RULE = (
    f"a difference counts from {BEYOND:g} standard errors on where it is the only one, and from more on where it is "
    "one of several (Holm 1979)"
)


def named_network(lab: Lab, model: str, **fields: Any) -> ResNetConfig:
    """Returns a network of the catalog, for the study's images, with these fields changed.

    Raises:
        UserError: there is no such network or field, or the fields do not go together.
    """
    return config_for_data(model, image_size=lab.image_size, overrides=fields, **lab.channels_and_classes)


def cells_of(lab: Lab, networks: Mapping[str, ResNetConfig | OutsideConfig], **fields: Any) -> list[Cell]:
    """Returns the trainings of each network with each seed; what they are called is the label "network"."""
    return [
        Cell(
            name=f"{kind.replace(' ', '-').replace(',', '')}-seed{seed}",
            network=config,
            seed=seed,
            labels={"network": kind},
            **fields,
        )
        for kind, config in networks.items()
        for seed in lab.seeds
    ]


def against(rows: pd.DataFrame, baseline: str, *, value: str = "test_error") -> dict[str, Difference]:
    """Returns by how much the mean of each network is above that of one of them.

    Args:
        rows: network, and the value, a row a training.
        baseline: the network that the others are compared with.
        value: the column.
    """
    values = {str(kind): group[value].to_numpy(dtype=float) for kind, group in rows.groupby("network", sort=False)}
    return {kind: difference(found, values[baseline]) for kind, found in values.items() if kind != baseline}


def told_apart(differences: Mapping[str, Difference]) -> set[str]:
    """Returns the names of the differences that are told from 0 when so many are looked at together.

    Holm's procedure (1979) on normal tails: the chance that any is told from 0 where there is none stays that of a
    single difference beyond twice its standard error, 4.6 %. So one alone counts from 2 standard errors on, the
    largest of three from 2.43, the next from 2.28. With few seeds the standard errors themselves are rough: of three
    the chance is 12 % for one difference and about 20 % that any of five is told from 0.
    """
    tails = 2 * NormalDist().cdf(-BEYOND)
    sizes = {name: _errors_from_zero(found) for name, found in differences.items()}
    found = set()
    for place, name in enumerate(sorted(sizes, key=lambda name: -sizes[name])):
        if sizes[name] <= -NormalDist().inv_cdf(tails / 2 / (len(sizes) - place)):
            break
        found.add(name)
    return found


def weigh(differences: Mapping[str, Difference], expected: Mapping[str, str], lead: str) -> Verdict:
    """Returns the verdict on a claim about several differences from one baseline.

    It holds where every difference that is expected to be "above" or "below" 0 is so for certain; it does not where
    one is certainly on the other side, or where one expected to be "not above" is above.

    Args:
        differences: from the baseline, by name.
        expected: of some of them, "above", "below" or "not above".
        lead: the words before the differences, saying what they are.
    """
    certain = told_apart(differences)
    signs = {name: math.copysign(name in certain, found.value) for name, found in differences.items()}
    wanted = {"above": 1, "below": -1, "not above": -1}
    listed = ", ".join(f"{name} {found}" for name, found in differences.items())
    words = f"{lead}: {listed}; {RULE}: {_listed(certain, differences)}"
    if any(signs[name] == -wanted[side] for name, side in expected.items()):
        return Verdict(claim=FAILS, words=words)
    if any(signs[name] != wanted[side] for name, side in expected.items() if side != "not above"):
        return Verdict(claim=OPEN, words=words)
    return Verdict(claim=HOLDS, words=words)


def _errors_from_zero(found: Difference) -> float:
    """Returns how many standard errors a difference is from 0; none where its noise is unknown."""
    if math.isnan(found.error) or found.value == 0:
        return 0.0
    return math.inf if found.error == 0 else abs(found.value) / found.error


def _listed(certain: set[str], differences: Mapping[str, Difference]) -> str:
    names = [f'"{name}"' for name in differences if name in certain]  # one of them may be called none
    return f"here {', '.join(names)} {'do' if len(names) > 1 else 'does'}" if names else "here no difference does"
