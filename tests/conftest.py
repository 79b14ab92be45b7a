"""What a test run shares: tiers, the order of tests, a place of its own for each worker, one Ray, one federation."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from umbel.client import shared
from umbel.simulations.engines import federate

RECORDED = Path(__file__).with_name("durations.json")
QUICK_SECONDS = 0.3  # a quick test takes no longer, by the record
HOME = pytest.StashKey[Path]()
PROCESSES = "processes"  # the group of tests that start Ray, federations or servers: never two at once

# The hub's client asks the network again and again before it gives up; what needs the hub says that it is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two workers with two threads each would wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background deaf to Ctrl-C, and nohup deaf to the end of the terminal; tests send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of a tier."""
    tiers = ("quick", "test", "all")
    parser.addoption("--tier", choices=tiers, default="test", help="how much to run (make quick, test, test-all)")
    parser.addoption("--record-bits", action="store_true", help="see test_recorded_bits.py")


def seconds_of(item: pytest.Item, recorded: dict[str, dict[str, float]]) -> float:
    """Return how long a test takes by the record; one that is not in it counts as short."""
    function = getattr(item, "originalname", None) or item.name
    return recorded.get(item.path.name, {}).get(function, 0.0)


def is_chosen(item: pytest.Item, tier: str, seconds: float) -> bool:
    """Say whether a test belongs to a tier."""
    if tier == "all":
        return True
    if item.get_closest_marker("exhaustive"):
        return False
    return tier == "test" or not (item.get_closest_marker("slow") or seconds > QUICK_SECONDS)


def group_of(item: pytest.Item) -> str:
    """Return the group of tests that stay with one worker: the file, or all that start processes."""
    shared = {"cluster", "federation"} & set(getattr(item, "fixturenames", ()))
    return PROCESSES if shared or item.get_closest_marker(PROCESSES) else item.path.stem


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tell pytest-xdist the group, here because it may look before `pytest_collection_modifyitems` is called."""
    item.add_marker(pytest.mark.xdist_group(group_of(item)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tier's tests and let the longest group begin first.

    A test that is named on the command line runs whatever its tier.
    """
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}
    seconds = {item: seconds_of(item, recorded) for item in items}
    tier = "all" if any("::" in argument for argument in config.args) else config.getoption("--tier")
    chosen = [item for item in items if is_chosen(item, tier, seconds[item])]
    if left := [item for item in items if not is_chosen(item, tier, seconds[item])]:
        config.hook.pytest_deselected(items=left)
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in chosen:
        groups[group_of(item)].append(item)
    total = {name: sum(seconds[item] for item in group) for name, group in groups.items()}
    items[:] = [item for name in sorted(groups, key=lambda each: (-total[each], each)) for item in groups[name]]


@pytest.fixture(scope="session", autouse=True)
def own_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give each worker a home of its own for federations and the memory of their clients; data stay shared."""
    home = tmp_path_factory.mktemp("umbel-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMBEL_HOME", str(home / "federation"))
        patch.setenv("UMBEL_STATE", str(home / "state"))
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def autocast_is_left() -> Iterator[None]:
    """Fail a test that leaves torch within autocast: casts of weights are then kept for whoever comes after it."""
    yield
    assert shared.autocast_depth() == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Collect what Ray leaves to the garbage collector here; behind the last test of processes, end what they shared.

    An idle SuperLink takes a sixth of a core, and Ray's processes would be collected in a test that knows nothing of
    them.
    """
    try:
        return (yield)
    finally:
        if group_of(item) == PROCESSES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if nextitem is None or group_of(nextitem) != PROCESSES:
                    end_what_is_shared(item.config)
                gc.collect()


def end_what_is_shared(config: pytest.Config) -> None:
    """End the federation and the Ray that tests share, where they have begun."""
    if (home := config.stash.get(HOME, None)) is not None:
        federate.stop(home)
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The folder of the federation that tests share."""
    pytestconfig.stash[HOME] = tmp_path_factory.mktemp("federation")
    return pytestconfig.stash[HOME]


@pytest.fixture
def federation(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two warm SuperNodes behind a SuperLink, up and whole when a test begins: whoever broke it, it is made again."""
    monkeypatch.setenv("UMBEL_HOME", str(shared_home))
    running = federate.find(shared_home)
    if running is None or running.num_alive < 2:
        federate.stop(shared_home)
        federate.start(2, shared_home)
    return shared_home


@pytest.fixture(scope="session")
def neutral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Ray to start in, which holds no package of the project's names."""
    return tmp_path_factory.mktemp("neutral")


@pytest.fixture
def cluster(neutral: Path) -> None:
    """Ray with two CPUs, started once for a test run; a run that finds it started uses it."""
    import ray

    from umbel.simulations.engines.ray_start import own_signals

    if not ray.is_initialized():
        with contextlib.chdir(neutral), own_signals():
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)


@pytest.fixture
def no_cluster() -> None:
    """End the Ray that tests share, for a test of how one is started."""
    import ray

    ray.shutdown()
