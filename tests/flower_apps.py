"""What tests of Flower's apps and messages need: a context, and an answer of an app that raised."""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Error, Message, RecordDict

from umbel.core.records import reason

CLIENT_FAILED = 3  # Flower's code for a ClientApp that raised


def make_context(run_config: dict[str, Any], node_config: dict[str, Any]) -> Context:
    """Make the context that an app runs in."""
    return Context(1, 1, node_config, RecordDict(), run_config)


def error_reply(message: Message, error: BaseException) -> Message:
    """Answer a message with an error."""
    return Message(Error(CLIENT_FAILED, reason(error)), reply_to=message)
