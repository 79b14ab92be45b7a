"""Keys for the nodes that a federation on this machine starts, and a list of sites on which nobody else is."""

from __future__ import annotations

from pathlib import Path

from umbel.conf.written import write_yaml
from umbel.core.files import write_text
from umbel.core.wire.identity import new_key, public_text, write_key

SITES_FILE, KEY_FILE = "sites.yaml", "site.key"


def private_folder(folder: Path) -> Path:
    """Make a folder that its owner alone can look into, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def make_identities(home: Path, num_nodes: int) -> list[Path]:
    """Make a key for each node, new ones each time, and the list of sites that knows these and no others.

    Args:
        home: Folder of the federation.
        num_nodes: Nodes, each of which has one of as many equal shares of all clients.

    Returns:
        The folder of each node, which has its key.
    """
    private_folder(home)
    folders, sites = [], {}
    for index in range(num_nodes):
        folder = private_folder(home / "nodes" / str(index))
        key = new_key()
        (folder / KEY_FILE).unlink(missing_ok=True)
        write_key(folder / KEY_FILE, key)
        sites[f"node-{index}"] = {"key": public_text(key), "clients": f"{index} of {num_nodes}"}
        folders.append(folder)
    write_text(home / SITES_FILE, write_yaml({"federation": "this machine", "sites": sites}))
    (home / SITES_FILE).chmod(0o600)
    return folders
