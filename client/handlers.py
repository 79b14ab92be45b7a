"""What the ClientApp answers: `umbel.client.process` and `umbel.client.worker`, in Flower's messages."""

from __future__ import annotations

from flwr.app import Context, Message

from umbel.client.process import AGREE, HELLO, answer, process
from umbel.core.wire.messages import decode_json, decode_work, encode_json, encode_outcome


def hello(message: Message, context: Context) -> Message:
    """Say which clients this node holds, with how many examples, and what it composed."""
    return Message(encode_json(answer(HELLO, decode_json(message.content), context)), reply_to=message)


def agree(message: Message, context: Context) -> Message:
    """Say of a site's own data what all sites have to agree on before the first round."""
    return Message(encode_json(answer(AGREE, decode_json(message.content), context)), reply_to=message)


def phase(message: Message, context: Context) -> Message:
    """Run a phase of a round for the clients that the message names; `evaluate` is one of them."""
    work, payload = decode_work(message.content)
    outcome = process.worker(context).run(work, payload)
    return Message(encode_outcome(outcome), reply_to=message)
