"""What the images, the compose file and the manifests say, read out of their files; there need be no Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.places import ROOT

DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
BIN = Path(sys.executable).parent
IMAGES = ("server", "client")
SITES = ("north", "south")


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **options)


def tool(name: str) -> str:
    """Return a program beside this Python or on the path, or skip."""
    program = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


@dataclass
class Stage:
    """One stage of a Dockerfile: its instructions, and what a container of it would start with."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        return [value for key, value in self.instructions if key == keyword][-1]


def parse(path: Path) -> dict[str, Stage]:
    """Read a Dockerfile; a stage that is built on an earlier one has its instructions first."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, Stage] = {}
    variables: dict[str, str] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        keyword, _, value = line.strip().partition(" ")
        value = value.strip()
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], base)
            inherited = list(stages[base].instructions) if base in stages else []
            current = stages[name] = Stage(name, stages[base].base if base in stages else base, inherited)
        elif keyword and current is None:
            assert keyword == "ARG"
            key, _, variables[key] = value.partition("=")
        elif keyword:
            assert current is not None
            current.instructions.append((keyword, value))
    return stages


STAGES = parse(DOCKER / "Dockerfile")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CUDA = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())


def image_environment(image: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in STAGES[image].instructions:
        if key == "ENV":
            for pair in shlex.split(value):
                name, _, content = pair.partition("=")
                values[name] = content
    return values


def copied(image: str) -> dict[str, Path]:
    """Return what COPY puts into an image from the project: path in the image -> file or folder here."""
    files = {}
    for key, value in STAGES[image].instructions:
        if key == "COPY" and "--from=" not in value:
            *sources, target = (word for word in value.split() if not word.startswith("--"))
            for source in sources:
                files[target + Path(source).name if target.endswith("/") else target] = ROOT / source
    return files


def command(image: str, service: str = "") -> list[str]:
    """Return what a container starts, tini left out: a service's own words before the image's."""
    own = COMPOSE["services"].get(service, {})
    entry = own.get("entrypoint", json.loads(STAGES[image].last("ENTRYPOINT")))
    words = own.get("command", [] if "entrypoint" in own else json.loads(STAGES[image].last("CMD")))
    assert entry[0] == "/usr/bin/tini"
    return [*entry[entry.index("--") + 1 :], *words]


def mounted(service: str) -> dict[str, str]:
    """Return what a service of the compose file mounts of the federation's volume: path in it -> part of the volume."""
    parts = {}
    for volume in COMPOSE["services"][service]["volumes"]:
        if isinstance(volume, str):
            source, target = volume.split(":")
            assert source == "federation"
            parts[target] = "."
        elif volume["type"] == "volume":
            assert volume["source"] == "federation"
            parts[volume["target"]] = volume["volume"]["subpath"]
    return parts


def manifests(folder: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a folder of manifests by their kinds."""
    names = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    texts = [(KUBERNETES / folder / name).read_text() for name in names]
    documents = [document for text in texts for document in yaml.safe_load_all(text)]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def pod(folder: str) -> dict[str, Any]:
    """Return the specification of the pod that a folder of manifests starts."""
    resources = manifests(folder)
    specification: dict[str, Any] = resources.get("StatefulSet", resources.get("Deployment", {}))["spec"]
    return specification["template"]["spec"]  # type: ignore[no-any-return]
