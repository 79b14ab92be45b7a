"""Where a set of the hub comes from: the splits of one, fetched or read from a folder, with nothing said to anyone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umbel.data.errors import DataError, MissingDataError


def open_splits(source: str, options: Mapping[str, str], remedy: str) -> tuple[dict[str, Any], str]:
    """Return the wanted splits under the names train and test, and the licence.

    Args:
        source: owner/name, or a folder.
        options: The options of `umbel.data.sources.hub`, all as strings.
        remedy: What to set once the files are in a folder, with the word FOLDER in it.

    Raises:
        MissingDataError: The set is not there, or there is no network.
        DataError: There is no such split.
    """
    with _quiet():
        from flwr_datasets import FederatedDataset

        extra = {key: options[key] for key in ("cache_dir", "revision") if options[key]}
        federated = FederatedDataset(
            dataset=str(Path(source).expanduser()) if source.startswith("~") else source,
            subset=options["subset"] or None,
            partitioners={},
            shuffle=False,
            **extra,
        )
        try:
            train = federated.load_split(options["train_split"])
        except OSError as error:
            raise MissingDataError(
                f"hub:{source} cannot be fetched ({error}). Expected a set of the Hugging Face hub and a "
                f"network (or its files in the cache), or a folder of parquet files.",
                key=remedy.partition("=")[0],
                remedy="Check data.name; behind a firewall, fetch it elsewhere with\n"
                f"    {download(source)}\n"
                f"and set {remedy}.",
            ) from error
        except ValueError as error:
            raise DataError(
                f"hub:{source}: {error}",
                key="data.options.train_split",
                remedy=f"Check data.options.train_split={options['train_split']} and data.options.subset.",
            ) from error
        splits = {"train": train}
        if options["test_split"]:
            try:
                splits["test"] = federated.load_split(options["test_split"])
            except ValueError as error:
                raise DataError(
                    f"hub:{source}: {error}",
                    key="data.options.test_split",
                    remedy="Set data.options.test_split; an empty one holds a fifth of each class of "
                    f"{options['train_split']} out.",
                ) from error
    return splits, str(train.info.license or "")


def download(source: str) -> str:
    """Return the command that fetches a set into a folder, on a machine that reaches the hub."""
    return f"hf download --repo-type dataset {source} --local-dir FOLDER"


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without progress bars and without reports to Flower; both are put back."""
    import datasets
    from flwr_datasets.common import telemetry

    had_bars = datasets.is_progress_bar_enabled()
    had_reports, source = telemetry.FLWR_TELEMETRY_ENABLED, telemetry.state["source"]
    if os.environ.get("FLWR_TELEMETRY_ENABLED") is None:
        telemetry.FLWR_TELEMETRY_ENABLED = "0"
        # A source that is known already is not written to the home directory.
        telemetry.state["source"] = "unavailable"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        executor = telemetry.state["executor"]
        if executor is not None:
            executor.shutdown(wait=True)
            telemetry.state["executor"] = None
        telemetry.FLWR_TELEMETRY_ENABLED, telemetry.state["source"] = had_reports, source
        if had_bars:
            datasets.enable_progress_bars()
