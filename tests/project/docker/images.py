"""What the images would run, read out of the Dockerfile: ENTRYPOINT, CMD, ENV and the scripts that COPY puts in place.

There need be no Docker engine: it is run here, with the image's environment and nothing else.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.places import ROOT

DOCKER = ROOT / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
BIN = Path(sys.executable).parent
IMAGES = ("server", "client")
NODES = tuple(f"node-{index}" for index in range(4))


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **options)


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
    """Return what COPY puts into an image from the project: path in the image -> file here."""
    files = {}
    for key, value in STAGES[image].instructions:
        if key == "COPY" and "--from=" not in value:
            *sources, target = (word for word in value.split() if not word.startswith("--"))
            for source in sources:
                files[target + Path(source).name if target.endswith("/") else target] = ROOT / source
    return files


def image_command(image: str, *arguments: str) -> list[str]:
    """Return what an image runs, for this machine: tini left out, scripts taken from where COPY takes them."""
    entry = json.loads(STAGES[image].last("ENTRYPOINT"))
    assert entry[:2] == ["/usr/bin/tini", "--"]
    program, *rest = entry[2:]
    script = copied(image)[f"/usr/local/bin/{program}"]
    return ["sh", str(script), *rest, *(arguments or json.loads(STAGES[image].last("CMD")))]
