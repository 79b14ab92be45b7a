"""Messages as bytes, the same in all versions of Flower that are known; light, for the process of the client."""

from __future__ import annotations

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage


def to_bytes(message: Message) -> bytes:
    """Return a message as bytes."""
    return bytes(message_to_proto(message).SerializeToString())


def from_bytes(content: bytes) -> Message:
    """Return the message that `to_bytes` made bytes of.

    Raises:
        google.protobuf.message.DecodeError: They are no message.
    """
    return message_from_proto(ProtoMessage.FromString(content))
