"""What a site's data are to an experiment, printed at the site: nothing is sent to anybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from umbel.client.own_data import OwnData
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import OwnSite, listed
from umbel.conf.load import load
from umbel.conf.own_data import is_own, read_site
from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.pictures import Form
from umbel.data.sites import dry, listing
from umbel.data.sites.agreed import classes_of
from umbel.data.sites.agreement import refuse_unknown, wants_sums

_SIDE = 32  # pixels, to which pictures are brought where no experiment says it


def dry_run(
    path: str | Path,
    experiment: str | Experiment | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Read a site's data as a run would, and print what is in them and what would be sent; nothing is sent.

    Args:
        path: The site's data file.
        experiment: The experiment, its name or path; None looks at the data alone.
        overrides: `key=value` each, for the experiment.
        say: Told a line at a time.

    Raises:
        Refusal: The data cannot be read, or do not go with the experiment; the message names the site.
    """
    site = read_site(path)
    if experiment is None:
        rows = listing.read_site(site, Form(_SIDE, "RGB"), 0)
        for line in dry.described(rows):
            say(line)
        data = DataConfig(image_size=_SIDE, channels=3, num_clients=rows.num_clients)
        gathered = listing.gather([(rows, range(rows.num_clients))], data, 0)
        _tell(gathered.whole.notices[len(gathered.bare.notices) :], gathered, say)
        say("Without an experiment nothing is known of what would be sent.")
        return
    # On this engine nobody has to say here where the other sites' data are.
    composed = load(experiment, [*overrides, "engine.name=grpc"]) if isinstance(experiment, str) else experiment
    if not is_own(composed):
        raise ExperimentError(
            f"data.name={composed.data.name}: sites take part with data of their own under data.name=sites alone.",
            key="data.name",
            remedy="Give an experiment with data.name=sites.",
        )
    form = Form(composed.data.image_size, "L" if composed.data.channels == 1 else "RGB")
    shown = listing.read_site(site, form, composed.data_seed)
    for line in dry.described(shown):
        say(line)
    numbers = tuple(range(shown.num_clients))
    # Which numbers its clients have, the federation says; they decide by lot what a client holds out.
    data = replace(composed.data, num_clients=shown.num_clients, num_shuffled=0)
    alone = replace(composed, data=data)
    own = OwnSite(str(Path(path).expanduser().absolute()), numbers)
    held = listed(alone, own)
    for line in dry.by_client(held.bare):
        say(line)
    if not isinstance(data.classes, str):
        refuse_unknown(data.classes, classes_of(held.bare))
    _tell(held.whole.notices[len(held.bare.notices) :], held, say)
    classes = held.bare.class_names if isinstance(data.classes, str) else data.classes
    answers = OwnData(alone, own)
    say("Sent before the first round, in answer to the server:")
    for question in ({}, {"classes": list(classes), "sums": wants_sums(data)}):
        answer = answers.answer({"clients": numbers, **question})
        if said := answer.get("refused"):
            raise Refusal.again(said)
        say(json.dumps(answer, ensure_ascii=False))
    say("Nothing was sent.")


def _tell(notices: Sequence[str], held: listing.Listing, say: Callable[[str], None]) -> None:
    for text in (*held.private, *notices):
        say(f"Note: {text}")
