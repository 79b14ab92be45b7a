"""A process that has loaded what every client needs, and waits for a bundle: most of a run's start are these imports.

A script and not a module: it is started without the project on its path, so that of umbel the bundle's own code is the
first that it sees. It reads one line, the bundle's folder as JSON, and becomes the process behind a warm node there.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from contextlib import suppress
from importlib import import_module

LIBRARIES = ("numpy", "torch", "safetensors.torch", "omegaconf", "PIL.Image", "flwr.app", "flwr.clientapp")


def main() -> None:
    """Wait for a folder and go on there; without one, when the node has ended."""
    for library in LIBRARIES:
        with suppress(ImportError):  # a bundle that needs it says so
            import_module(library)
    # Without a buffer, so that not a byte more than the line is read: what follows is for the bundle's own code.
    with open(0, "rb", buffering=0, closefd=False) as stream:
        line = stream.readline()
    if not line:
        return
    folder = json.loads(line)
    os.chdir(folder)
    sys.path.insert(0, folder)  # as `python -m` in this folder does
    runpy.run_module("umbel.client.node.serve", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
