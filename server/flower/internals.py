"""What the server needs of Flower's private modules, the same in all versions that are known."""

from __future__ import annotations

from flwr.app import Error
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.task_identity import TaskIdentity

from umbel.core.wire.flower_versions import fleet

_PULL_SECONDS = 0.02


def identify() -> None:
    """Give this process an identity, unless Flower has given it one: a Message cannot be made without.

    Raises:
        Refusal: Nobody has tried the version of Flower that is installed.
    """
    fleet()
    unset: int | None = TaskIdentity._task_id
    if unset is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def node_left() -> Error:
    """Return what a SuperLink answers for a node that is gone."""
    return Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable: it left before its reply was complete.")


def hasten() -> None:
    """Look sooner for a reply's objects: it is announced before they are up, and Flower then sleeps a second.

    That second was most of a round. The wait still doubles up to Flower's ten seconds.
    """
    defaults = pull_objects.__kwdefaults__
    assert defaults is not None
    defaults["initial_backoff"] = _PULL_SECONDS
