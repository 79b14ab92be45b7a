"""A process's part in what sites with data of their own agree on.

What lies at a site stays there: what is told of a refusal, or of what was left out, names no file. All of it stands in
the node's log, and `umbel data check-site` prints it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from umbel.conf.federation import OwnSite, listed
from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.data import partition
from umbel.data.federation import Federation
from umbel.data.sites.agreed import at_site, relabelled
from umbel.data.sites.agreement import Inventory
from umbel.data.sites.errors import SiteError
from umbel.data.sites.listing import Listing
from umbel.data.sites.sums import Sums

_HOW = "umbel data check-site FILE says there what it is."
log = logging.getLogger("umbel.node")


class OwnData:
    """What the sites of this process hold.

    Args:
        experiment: The experiment.
        own: The site of this node; None takes those that the experiment names.
    """

    def __init__(self, experiment: Experiment, own: OwnSite | None) -> None:
        self._experiment = experiment
        self._own = own
        self._agreed: tuple[dict[str, Any], Listing, Federation] | None = None

    def declared(self, clients: Iterable[int]) -> dict[str, Any]:
        """Return what a greeting says: training examples of each client, the classes with theirs, and its site.

        Nothing where the data are refused: the server hears why when it asks for what all agree on.
        """
        try:
            inventory = Inventory.of(listed(self._experiment, self._own).bare, clients)
        except (Refusal, OSError):
            return {}
        train = {str(client): counts["train"] for client, counts in inventory.counts.items()}
        times = partition.repeats(self._experiment.data)
        return {
            "examples": {client: times * sum(counts.values()) for client, counts in train.items()},
            "classes": {client: dict(counts) for client, counts in train.items()},
            "sites": {str(client): site for client, site in inventory.sites.items()},
        }

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a step of the agreement: the classes and their counts, or sums over pictures of the classes agreed on.

        Args:
            asked: `clients`, and in the second step `classes` and whether `sums` are wanted.
        """
        clients = [int(client) for client in asked["clients"]]
        try:
            held = listed(self._experiment, self._own)
            if "classes" not in asked:
                for text in held.private:
                    log.info("%s", text)
                notices = held.bare.notices if self._own else (*held.bare.notices, *held.private)
                is_own = self._own is not None  # and not one of the files that the experiment names
                return Inventory.of(held.bare, clients).plain() | {"notices": list(notices), "own": is_own}
            known, whole = len(held.bare.notices), held.whole
        except Refusal as error:
            return {"refused": self._told(error)}
        except OSError as error:
            return {"refused": self._told(Refusal(str(error), key="site-data"))}
        try:
            made = relabelled(whole, [str(name) for name in asked["classes"]], self._experiment.data)
        except Refusal as error:  # names classes, which all know
            return {"refused": error.as_dict()}
        answer: dict[str, Any] = {"notices": list(whole.notices[known:])}
        return answer | ({"sums": Sums.of(made, clients).plain()} if asked["sums"] else {})

    def federation(self, agreed: Mapping[str, Any]) -> Federation:
        """Return what the sites hold by what all agreed on; the same object as long as no file of theirs changes.

        Raises:
            ValueError: Nothing was agreed on.
            Refusal: The data are refused.
        """
        if not agreed:
            raise ValueError("The server sends no classes, and each site has its own data here.")
        held = listed(self._experiment, self._own)
        if self._agreed is None or self._agreed[0] != agreed or self._agreed[1] is not held:
            self._agreed = (dict(agreed), held, at_site(held.whole, agreed, self._experiment.data))
        return self._agreed[2]

    def agreed(self, agreed: Mapping[str, Any]) -> Federation:
        """Return what the sites hold by what all agreed on; what is wrong is told as others may know it.

        Raises:
            Refusal: The data cannot be read, or are not what they were.
        """
        try:
            return self.federation(agreed)
        except Refusal as error:
            raise Refusal.again(self._told(error)) from None
        except OSError as error:
            raise Refusal.again(self._told(Refusal(str(error), key="site-data"))) from None

    def _told(self, error: Refusal) -> dict[str, str]:
        """Return of a refusal what others may know; whoever named the files in the experiment may know all."""
        if self._own is None:
            return error.as_dict()
        log.error("%s", error)
        public = error.public if isinstance(error, SiteError) else "a site's data file is refused."
        return Refusal(public, key="site-data", remedy=_HOW).as_dict()
