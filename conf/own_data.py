"""Sites with data of their own: their files, and what an experiment says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from umbel.conf.errors import ExperimentError
from umbel.conf.paths import absolute
from umbel.conf.schema import Experiment
from umbel.conf.typed import section
from umbel.conf.written import read_yaml
from umbel.core.refusal import Refusal
from umbel.data import encoders, partition
from umbel.data.config import DataConfig
from umbel.data.pictures import mode_of
from umbel.data.sites.agreement import INTERSECTION, UNION
from umbel.data.sites.description import SiteData, check_class, composed
from umbel.data.sites.named import NAME as NAME

_OWN_KEYS = ("classes", "image_size", "channels", "mean", "std", "sites", "server")
# What cuts or picks examples that lie in one place; the sites' stay where they are.
_NO_PART = ("path", "top_up", "max_train", "max_test", "server_validation", "public", "text_encoder")


def is_own(experiment: Experiment) -> bool:
    """Say whether each site has its own data."""
    return experiment.data.name == NAME


def read_site(path: str | Path) -> SiteData:
    """Read a site's data file; its paths are from its folder on, its name is that of the file where it says none.

    Raises:
        ExperimentError: There is no such file, or it has keys or values that there are not; the message names it.
    """
    file = absolute(str(path), "site-data")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(
            f"The site's data file {path} cannot be read: {error}.", key="site-data", remedy="Give the path of one."
        ) from error
    try:
        site: SiteData = section(SiteData, read_yaml(text, file.name), "")
    except Refusal as error:
        raise ExperimentError(f"{path}: {error.reason}", key=error.key, remedy=error.remedy) from error
    where = str(file.parent / Path(site.path).expanduser()) if site.path else ""
    classes = {composed(name): to if to is None else composed(to) for name, to in site.classes.items()}
    name = site.name or file.stem
    return replace(site, name=name, path=where, classes=classes, clients=[composed(each) for each in site.clients])


def resolved(data: DataConfig) -> DataConfig:
    """Return the section `data` with absolute paths and composed names of classes."""
    return replace(
        data,
        sites=[str(absolute(path, "data.sites")) for path in data.sites],
        server=str(absolute(data.server, "data.server")) if data.server else "",
        classes=data.classes if isinstance(data.classes, str) else [composed(name) for name in data.classes],
    )


def check(experiment: Experiment) -> None:
    """Refuse what does not go with data of the sites' own, and their keys where nobody has some.

    Raises:
        Refusal: With the key to change.
    """
    data, plain = experiment.data, DataConfig()
    if not is_own(experiment):
        for key in _OWN_KEYS:
            if getattr(data, key) != getattr(plain, key):
                raise ExperimentError(
                    f"data.{key} has a part in data.name={NAME} alone, found data.name={data.name}.",
                    key=f"data.{key}",
                    remedy=f"Leave it out, or set data.name={NAME}.",
                )
        return
    for key in _NO_PART:
        if value := getattr(data, key):
            raise ExperimentError(
                f"data.{key}={value} has no part in data.name={NAME}: the server has no examples to cut or to share, "
                "and each site trains on all of its own.",
                key=f"data.{key}",
                remedy=f"Leave it out, or set data.{key}={_off(key)}.",
            )
    if data.partition != plain.partition and partition.tasks(data.partition) == "none":
        raise ExperimentError(
            f"data.partition={data.partition} cuts one set into clients, and under data.name={NAME} each site has its "
            "own.",
            key="data.partition",
            remedy=f"Leave it out; {' and '.join(partition.sequences())} make a sequence of tasks.",
        )
    _classes(data)
    _pictures(data)
    _places(experiment)


def _off(key: str) -> str:
    default = getattr(DataConfig(), key)
    return "0" if key == "server_validation" else {None: "null", False: "false", "": '""'}.get(default, str(default))


def _classes(data: DataConfig) -> None:
    if isinstance(data.classes, str):
        if data.classes not in (UNION, INTERSECTION):
            raise ExperimentError(
                f"data.name={NAME} needs data.classes, found {data.classes!r}.",
                key="data.classes",
                remedy=f"Name them, data.classes=[cat, dog], or take {UNION} or {INTERSECTION} of those of the sites.",
            )
        return
    for name in data.classes:
        check_class(name, "data.classes")
    if len(set(data.classes)) < max(2, len(data.classes)):
        raise ExperimentError(
            f"data.classes={data.classes}: expected two names or more, each once.",
            key="data.classes",
            remedy="Add some.",
        )


def _pictures(data: DataConfig) -> None:
    if not data.image_size:
        raise ExperimentError(
            f"data.name={NAME} needs data.image_size, to which sites bring their pictures.",
            key="data.image_size",
            remedy="Set it, such as data.image_size=32.",
        )
    try:
        mode_of(data.channels)
    except Refusal as error:
        raise ExperimentError(
            f"data.channels must be 1 (grey) or 3 (colour), found {data.channels}.",
            key="data.channels",
            remedy="Set one of them.",
        ) from error
    if data.encoder and encoders.is_fitted(data.encoder):
        raise ExperimentError(
            f"data.encoder={data.encoder} is fitted to pictures, and each site would fit another.",
            key="data.encoder",
            remedy="Take one that is trained already, such as lite0.",
        )
    if not data.mean and not data.std:
        return
    if data.encoder:
        raise ExperimentError(
            f"data.mean={data.mean} has no part beside data.encoder={data.encoder}: embeddings are not normalised.",
            key="data.mean",
            remedy="Leave out data.mean and data.std.",
        )
    if len(data.mean) != data.channels or len(data.std) != data.channels:
        raise ExperimentError(
            f"data.mean={data.mean} and data.std={data.std} should have data.channels={data.channels} numbers each.",
            key="data.mean",
            remedy="Give both, or none to take those of all sites' pictures.",
        )
    if not all(0 <= each <= 1 for each in data.mean) or not all(0 < each <= 1 for each in data.std):
        raise ExperimentError(
            f"data.mean={data.mean} and data.std={data.std} are in units of [0, 1] pixels.",
            key="data.mean",
            remedy="Divide by 255 what is in units of 0 to 255; no deviation is 0.",
        )


def _places(experiment: Experiment) -> None:
    data, evaluate = experiment.data, experiment.evaluate
    if experiment.engine.name != "grpc" and not data.sites:
        raise ExperimentError(
            f"data.name={NAME} on engine.name={experiment.engine.name} needs data.sites, the sites' data files.",
            key="data.sites",
            remedy="Set data.sites=[north.yaml, south.yaml], or run it on a federation of sites (engine.name=grpc).",
        )
    if evaluate.collapse and not data.server:
        raise ExperimentError(
            f"evaluate.collapse=true looks at pictures of the server, which has none under data.name={NAME}.",
            key="evaluate.collapse",
            remedy="Set evaluate.collapse=false, or data.server to a folder of test pictures.",
        )
