"""Which versions of Flower are known; of the others a sentence says so."""

from __future__ import annotations

from importlib import metadata

import pytest

from umbel.core.refusal import Refusal
from umbel.core.wire.flower_versions import FLEETS, fleet, fleet_of


@pytest.mark.parametrize(
    ("version", "spoken"), [("1.39.0", "grpc"), ("1.39.7", "grpc"), ("1.40.0", "http"), ("1.42.0", "http")]
)
def test_what_nodes_speak_depends_on_the_version(version, spoken):
    assert fleet_of(version) == spoken


@pytest.mark.parametrize("version", ["1.38.9", "1.3", "1.390.0", "2.39.0", "1.99.0.dev20270101", "nightly"])
def test_a_version_that_nobody_has_tried_is_refused_by_name(version):
    with pytest.raises(Refusal, match=f"Flower {version} is installed.*1.39.*pip install"):
        fleet_of(version)


def test_the_installed_one_is_known():
    assert fleet() == FLEETS[".".join(metadata.version("flwr").split(".")[:2])]
