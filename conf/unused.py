"""Keys of the engine that the one that was asked for does not read: a run says so, and nobody waits for an effect."""

from __future__ import annotations

from dataclasses import fields

from umbel.conf.schema import EngineConfig

_WHOSE = {
    "workers": ("processes", "ray"),
    "gpus_per_worker": ("processes", "ray"),
    "ray_address": ("ray",),
    "nodes": ("grpc",),
}


def unused(engine: EngineConfig) -> list[str]:
    """Return a sentence for each key that was set and is of other engines."""
    defaults = {field.name: field.default for field in fields(engine)}
    return [
        f"engine.{key}={getattr(engine, key)} is of {' and '.join(f'engine.name={name}' for name in names)}; "
        f"engine.name={engine.name} does not read it."
        for key, names in _WHOSE.items()
        if engine.name not in names and getattr(engine, key) != defaults[key]
    ]
