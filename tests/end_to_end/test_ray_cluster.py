"""A Ray cluster of two nodes, on this machine: the same bits as inline, also when one of them is lost in a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL, STRATEGIES
from tests.helpers import bits
from tests.places import ROOT
from umbel import run

pytestmark = [pytest.mark.exhaustive, pytest.mark.slow, pytest.mark.processes]
OPTIONS = (*SMALL, *STRATEGIES["scaffold"], "run.rounds=3")

# A process of its own: Ray is there once in a process, and the tests have theirs.
SCRIPT = """
import json, sys
from ray.cluster_utils import Cluster
from umbel import Listener, run

words, folder, is_lost = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()


class Loses(Listener):
    round_ = 0

    def phase(self, round_, phase, num_clients):
        self.round_ = round_

    def clients_done(self, num_clients):
        global other
        if is_lost and self.round_ == 2 and other is not None:
            node, other = other, None
            cluster.remove_node(node, allow_graceful=False)


engine = ("engine.name=ray", f"engine.ray_address={cluster.address}", "engine.workers=2")
limits = ("engine.node_timeout_seconds=60", f"run.results={folder}")
result = run("digits", *words, *engine, *limits, listener=Loses())
summary = dict(result.summary)
cluster.shutdown()  # or Ray would look for it ever after
print(json.dumps({"bits": summary["weights_sha256"], "failures": summary["num_failures"], "lost": other is None}))
"""


@pytest.mark.parametrize("is_lost", [False, True])
def test_the_same_bits_on_a_cluster(is_lost: bool, tmp_path: Path) -> None:
    """The second node's worker is gone for good: there is no other place for it, and the first does all."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(OPTIONS), str(tmp_path), str(is_lost)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    expected = bits(run("digits", *OPTIONS, f"run.results={tmp_path / 'inline'}"))
    assert said == {"bits": expected, "failures": 0, "lost": is_lost}
