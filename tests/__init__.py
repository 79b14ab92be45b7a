"""The tests. Warnings are errors, but typer (behind flwr) uses what click 8.4 deprecates; it warns once, on import."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401
