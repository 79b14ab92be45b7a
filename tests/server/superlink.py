"""A SuperLink of a test: it keeps answers as Flower's objects, and hands them out one by one, as to `HttpGrid`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

Objects = dict[str, bytes]
Change = Callable[[Message, Objects, ObjectTree], tuple[Objects, ObjectTree]]


def objects_of(message: Message) -> Objects:
    """The bytes of a message's objects, by their ids."""
    return {name: each.deflate() for name, each in get_all_nested_objects(message).items()}


class SuperLinkGrid(HttpGrid):
    """A grid whose SuperLink is in this process.

    Args:
        nodes: Those that are there.
        answer: Returns the answer to a message, or None while there is none.
        change: Returns the objects and the tree of an answer as its node sent them, of those that an honest one has.

    Attributes:
        num_pulled: Bytes of objects that were handed out.
        confirmed: Answers that need not be kept any more.
        faults: What the test's own `answer` and `change` raised: it would count as what a node sent.
    """

    def __init__(
        self, nodes: Collection[int], answer: Callable[[Message], Message | None], change: Change | None = None
    ) -> None:
        super().__init__(token="none")
        self._nodes, self._answer, self._change = list(nodes), answer, change
        self._sent: dict[str, Message] = {}
        self._objects: Objects = {}
        self.num_pulled, self.confirmed, self.faults = 0, list[str](), list[Exception]()

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)

    @property
    def _runtime_client(self) -> Any:
        return self

    def get_node_ids(self) -> list[int]:
        return self._nodes

    def push_messages(self, messages: Any) -> list[str]:
        names = []
        for message in messages:
            names.append(f"m{len(self._sent)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self._sent[names[-1]] = message
        return names

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802 - Flower's name
        try:
            return self._pulled(request)
        except Exception as error:
            self.faults.append(error)
            raise

    def _pulled(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        response = PullAppMessagesResponse()
        for name in request.message_ids:
            if (reply := self._answer(self._sent[name])) is None:
                continue
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = objects_of(reply), get_object_tree(reply)
            if self._change is not None:
                objects, tree = self._change(self._sent[name], objects, tree)
            self._objects |= objects
            response.messages_list.append(message_to_proto(reply))
            response.message_object_trees.append(tree)
        return response

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's name
        content = self._objects.get(request.object_id)
        self.num_pulled += len(content or b"")
        return PullObjectResponse(
            object_found=content is not None, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802 - Flower's name
        self.confirmed.append(request.message_object_id)

    def close(self) -> None:
        pass
