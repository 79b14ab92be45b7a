"""Who wants to know how a run goes."""

from __future__ import annotations

from collections.abc import Mapping

from conf.schema import Experiment


class Listener:
    """Told of everything that happens in a run; by default it does not care."""

    def begin(self, experiment: Experiment, folder: str) -> None:
        """A run begins."""

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        """A phase begins with so many clients."""

    def clients_done(self, num_clients: int) -> None:
        """So many clients of the phase are accounted for."""

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        """A client's reply was left out."""

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """A round is complete."""
