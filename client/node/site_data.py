"""What a site's data are to an experiment, printed at the site: nothing is sent to anybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from umbel.client.greeting import greeting
from umbel.client.own_data import OwnData
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import OwnSite, listed
from umbel.conf.load import load, portable_hash
from umbel.conf.own_data import is_own, read_site
from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.pictures import Form, mode_of
from umbel.data.sites import dry, listing
from umbel.data.sites.agreed import classes_of
from umbel.data.sites.agreement import INTERSECTION, refuse_unknown, wants_sums

_SIDE = 32  # pixels, to which pictures are brought where no experiment says it


def dry_run(
    path: str | Path,
    experiment: str | Experiment | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], object] = print,
    clients: Sequence[range] = (),
) -> int:
    """Read a site's data as a run would, and print what is in them and what would be sent; nothing is sent.

    Args:
        path: The site's data file.
        experiment: The experiment, its name or path; None looks at the data alone.
        overrides: `key=value` each, for the experiment.
        say: Told a line at a time.
        clients: The numbers of the site's clients in the federation, ascending, where they are known and as many as
            the data have; else they are counted from 0.

    Returns:
        How many clients the data have.

    Raises:
        Refusal: The data cannot be read, or do not go with the experiment; the message names the site.
    """
    site, file = read_site(path), str(path)
    if experiment is None:
        rows = listing.read_site(site, Form(_SIDE, "RGB"), 0, file)
        for line in dry.described(rows):
            say(line)
        data = DataConfig(image_size=_SIDE, channels=3, num_clients=rows.num_clients)
        gathered = listing.gather([(rows, range(rows.num_clients))], data, 0)
        _tell(gathered.whole.notices[len(gathered.bare.notices) :], gathered, say)
        say("Without an experiment nothing is known of what would be sent.")
        return rows.num_clients
    # On this engine nobody has to say here where the other sites' data are.
    composed = load(experiment, [*overrides, "engine.name=grpc"]) if isinstance(experiment, str) else experiment
    if not is_own(composed):
        raise ExperimentError(
            f"data.name={composed.data.name}: sites take part with data of their own under data.name=sites alone.",
            key="data.name",
            remedy="Give an experiment with data.name=sites.",
        )
    data = composed.data
    shown = listing.read_site(site, Form(data.image_size, mode_of(data.channels)), composed.data_seed, file)
    for line in dry.described(shown):
        say(line)
    known = sum(map(len, clients)) == shown.num_clients
    numbers = tuple(chain(*clients) if known else range(shown.num_clients))
    alone = composed
    if not known:
        alone = replace(composed, data=replace(data, num_clients=shown.num_clients, num_shuffled=0))
    elif numbers[-1] >= data.num_clients:
        raise ExperimentError(
            f"This site has the client {numbers[-1]}, and the experiment data.num_clients={data.num_clients}.",
            key="data.num_clients",
            remedy="Ask whoever runs it, or whoever numbers the sites' clients.",
        )
    own = OwnSite(str(Path(path).expanduser().absolute()), numbers)
    held = listed(alone, own)
    for line in dry.by_client(held.bare, numbers, known):
        say(line)
    if not isinstance(data.classes, str):
        refuse_unknown(data.classes, classes_of(held.bare))
    _tell(held.whole.notices[len(held.bare.notices) :], held, say)
    for line in _sent(composed, OwnData(alone, own), held.bare.class_names, numbers):
        say(line)
    say("Nothing was sent.")
    return shown.num_clients


def _sent(composed: Experiment, answers: OwnData, own: Sequence[str], numbers: Sequence[int]) -> Iterator[str]:
    """Yield what a node would send before the first round, word for word, and what is not known of it here.

    Args:
        composed: The experiment, whose hash is sent.
        answers: The site's part in it.
        own: The names of the site's classes.
        numbers: Its clients.

    Raises:
        Refusal: The data are refused.
    """
    data = composed.data
    yield "Sent when the server greets it:"
    yield _json(greeting(numbers, portable_hash(composed), answers.declared(numbers)))
    yield (
        "To this a node with a key adds the name of the key, and its signature of partitions, config_hash and examples "
        "together with the server's challenge, the run and the node's number. `time` is that of the greeting."
    )
    yield "Sent before the first round, in answer to the server:"
    classes = own if isinstance(data.classes, str) else data.classes
    for question in ({}, {"classes": list(classes), "sums": wants_sums(data)}):
        answer = answers.answer({"clients": numbers, **question})
        if said := answer.get("refused"):
            raise Refusal.again(said)
        yield _json(answer)
    if data.classes == INTERSECTION and wants_sums(data):
        yield (
            "data.classes=intersection: these sums are over all classes of this site. A run's are over those that all "
            "sites turn out to have."
        )


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)


def _tell(notices: Sequence[str], held: listing.Listing, say: Callable[[str], object]) -> None:
    for text in (*held.private, *notices):
        say(f"Note: {text}")
