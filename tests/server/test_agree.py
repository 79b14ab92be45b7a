"""What nodes say of their sites' data before the first round: what cannot be is refused, by name."""

from __future__ import annotations

import pytest

from tests.server.fakes import Greeted, node_of
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.wire.identity import new_key, public_text
from umbel.data.errors import DataError
from umbel.server.agree import Round
from umbel.server.nodes import Directory
from umbel.server.sites import Sites

EXPERIMENT = """
data:
  name: sites
  num_clients: 2
  classes: intersection
  image_size: 8
  channels: 3
  mean: [0.5, 0.5, 0.5]
  std: [1, 1, 1]
"""
NORTH, SOUTH = new_key(), new_key()


def told(key, client, name, classes, own=True):
    """A node with a site's data of its own."""
    greet = node_of(key, [client])
    empty = {"validation": {}, "test": {}}
    counts = {str(client): {"train": dict.fromkeys(classes, 3), **empty}}

    def answer(asked, node):
        if "agree" not in asked:
            return greet(asked, node)
        if "classes" in asked:
            return {"notices": ["A class is rare."]}
        return {"sites": {str(client): name}, "counts": counts, "notices": [], "own": own}

    return answer


def agreed(nodes, sites=None, notice=lambda text: None):
    port = Greeted(nodes)
    directory = Directory(port, "hash", 2, 0.0, "a run", sites)
    directory.wait()
    experiment = load("x", ["engine.name=grpc"], EXPERIMENT)
    return Round(experiment, port, directory, "hash", notice, lambda: None).agree()


def two(north, south, **more):
    cats = {"north": ["cat", "dog", "zebra"], "south": ["ant", "cat", "dog"]}
    return {1: told(NORTH, 0, north, cats["north"], **more), 2: told(SOUTH, 1, south, cats["south"], **more)}


def test_an_intersection_is_what_all_sites_have():
    assert agreed(two("north", "south")).classes == ("cat", "dog")


def test_what_several_sites_say_is_said_once():
    notices = []
    agreed(two("north", "south"), notice=notices.append)
    assert notices.count("A class is rare.") == 1


def test_two_sites_of_one_name_are_refused():
    with pytest.raises(ExperimentError, match="Node 1 calls its site site, and so does node 2"):
        agreed(two("site", "site"))


def test_one_site_may_lie_on_two_nodes_where_the_experiment_names_it():
    assert agreed(two("site", "site", own=False)).classes == ("ant", "cat", "dog", "zebra")


def test_no_site_is_called_as_another_of_the_list(tmp_path):
    file = tmp_path / "sites.yaml"
    lines = ["federation: animals", "sites:"]
    for name, key, client in (("north", NORTH, 0), ("south", SOUTH, 1)):
        pem = public_text(key).replace("\n", "\n      ")
        lines += [f"  {name}:", f"    key: |\n      {pem}", f'    clients: "{client}"']
    file.write_text("\n".join(lines) + "\n")
    assert agreed(two("north", "south"), Sites(file)).classes == ("cat", "dog")
    assert agreed(two("my zoo", "south"), Sites(file)).classes == ("cat", "dog")
    with pytest.raises(ExperimentError, match="Node 1 calls its site south, which is another site's name here"):
        agreed(two("south", "my zoo"), Sites(file))


def test_no_class_in_common_is_refused_by_name():
    nodes = {1: told(NORTH, 0, "north", ["cat", "dog"]), 2: told(SOUTH, 1, "south", ["ant", "zebra"])}
    with pytest.raises(DataError):
        agreed(nodes)
