"""The data and the model of an experiment: built once in a process, shared by server and clients in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from umbel.conf.check import strategy_of
from umbel.conf.errors import ExperimentError
from umbel.conf.own_data import is_own, read_site
from umbel.conf.schema import Experiment
from umbel.core.device import parameter_dtype
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded
from umbel.data.federation import Federation
from umbel.data.pictures import Form, mode_of
from umbel.data.sites import agreed, listing
from umbel.data.sites.agreement import Agreement, Inventory, choose, conclude, wants_sums
from umbel.data.sites.listing import Listing
from umbel.data.sites.sums import Sums
from umbel.data.sites.watched import Watched
from umbel.models import norm
from umbel.models.assemble import assemble
from umbel.models.base import Model
from umbel.models.checkpointing import checkpoint_blocks

_cache: dict[str, Federation] = {}
_listings: dict[str, Listing] = {}


@dataclass(frozen=True)
class OwnSite:
    """The site of a node that has data of its own.

    Attributes:
        file: Its data file.
        clients: The numbers of its clients, ascending.
    """

    file: str
    clients: tuple[int, ...]


def _key(experiment: Experiment) -> str:
    return json.dumps([asdict(experiment.data), experiment.data_seed], sort_keys=True)


def federation(experiment: Experiment) -> Federation:
    """Return the experiment's data set, cut into server and clients; the last one made is kept.

    Of sites with data of their own, those of `data.sites`, agreed on here; their pictures are kept (`listed`).

    Raises:
        DataError: The data are missing or damaged, or cannot be cut as asked.
    """
    if is_own(experiment):
        agreement = agree_here(experiment, listed(experiment).whole)
        tested = at_server(experiment, agreement).test_pool
        return replace(at_sites(experiment, agreement.shared()), test_pool=tested)
    key = _key(experiment)
    if key not in _cache:
        _cache.clear()
        _cache[key] = Federation.build(experiment.data, experiment.data_seed)
    return _cache[key]


def adopt(experiment: Experiment, made: Federation) -> None:
    """Use a federation that was made elsewhere, over shared memory."""
    _cache.clear()
    _listings.clear()
    if is_own(experiment):
        _listings[_key(experiment)] = Listing(made, lambda: (made.pool.images, (), ()))
    else:
        _cache[_key(experiment)] = made


def held(experiment: Experiment) -> Federation:
    """Return what a process holds of clients' data, which other processes may `adopt`."""
    return listed(experiment).whole if is_own(experiment) else federation(experiment)


def listed(experiment: Experiment, own: OwnSite | None = None) -> Listing:
    """Return what the sites of this process hold, before all agree; kept until one of their files changes.

    Args:
        experiment: The experiment, of sites with data of their own.
        own: The one site of this process; None takes those of `data.sites`, one after the other.

    Raises:
        DataError: Data are missing or damaged; the message names the site.
        ExperimentError: There are other numbers of clients than the experiment has.
    """
    data, seed = experiment.data, experiment.data_seed
    key = _key(experiment) if own is None else json.dumps([_key(experiment), asdict(own)])
    if (kept := _listings.get(key)) is not None and kept.current:
        return kept
    form = Form(data.image_size, mode_of(data.channels))
    sites: list[tuple[listing.Site, Sequence[int]]] = []
    files, first = data.sites if own is None else [own.file], 0
    watched = Watched.now(Path(file).expanduser() for file in files)
    for file in files:
        site = listing.read_site(read_site(file), form, seed, file)
        numbers = range(first, first + site.num_clients) if own is None else own.clients
        sites.append((site, numbers))
        first += len(numbers)
    if not sites:
        raise ExperimentError(
            "This node has no data of its own, and the experiment names none.",
            key="site-data",
            remedy="Set site-data in its node's configuration to the site's data file.",
        )
    if own is None and first != data.num_clients:
        each = ", ".join(f"{site.name} has {len(numbers)}" for site, numbers in sites)
        raise ExperimentError(
            f"data.num_clients={data.num_clients}, and data.sites have {first} clients: {each}.",
            key="data.num_clients",
            remedy=f"Set data.num_clients={first}.",
        )
    _listings.clear()
    _listings[key] = listing.gather(sites, data, seed, [watched])
    return _listings[key]


def agree_here(experiment: Experiment, held: Federation) -> Agreement:
    """Return what sites agree on that are all in this process."""
    everyone = range(experiment.data.num_clients)
    inventory = Inventory.of(held, everyone)
    classes = choose(experiment.data.classes, [inventory])
    made = agreed.relabelled(held, classes, experiment.data)
    sums = (Sums.of(made, everyone),) if wants_sums(experiment.data) else ()
    return conclude(experiment.data, classes, [inventory], sums)


def at_sites(experiment: Experiment, shared: Mapping[str, Any]) -> Federation:
    """Return what the sites of `data.sites` hold by what all agreed on; errors as of `listed`."""
    return agreed.at_site(listed(experiment).whole, shared, experiment.data)


def at_server(experiment: Experiment, agreement: Agreement) -> Federation:
    """Return what the server has of sites with data of their own: what they agreed on, and its own test pictures."""
    return agreed.at_server(agreement, experiment.data, experiment.data_seed)


def build_model(experiment: Experiment, data: Federation) -> Model:
    """Build the experiment's model, initialised from the run's seed, with its operators and its norm rule."""
    config = experiment.model

    def factory() -> Model:
        model = assemble(
            config.name,
            data.num_classes,
            data.image_size,
            data.in_channels,
            sizes=config.sizes,
            operators_=config.operators,
            norm_rule=config.norm,
        )
        return checkpoint_blocks(model) if config.checkpoint else model

    return build_seeded(factory, experiment.run.seed, parameter_dtype(experiment.client.precision))


def local_names(experiment: Experiment, model: Model) -> frozenset[str]:
    """Return the names of the model's state that stay with each client.

    Raises:
        Refusal: Nothing would be left that does not.
    """
    own = norm.batch_norm_names(model) if experiment.model.norm == "local" else frozenset()
    parts = strategy_of(experiment).local_parts
    names = set(model.state_dict())
    body = {name for name in names if not name.startswith("head.")}
    if parts and not body:
        raise Refusal(
            f"strategy.name={experiment.strategy.name} keeps the {' and the '.join(parts)} with each client, and "
            f"model.name={experiment.model.name} is a head and nothing else.",
            key="model.name",
            remedy="Choose a model with a body, such as model.name=cnn.",
        )
    kept = {name for name in names if name.startswith(tuple(f"{part}." for part in parts))}
    return own | kept | (body if "body" in parts else set())
