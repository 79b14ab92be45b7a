"""Nodes in this process that behave as a test says, and an exchange with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from flwr.app import Message

from tests.flower_apps import error_reply
from tests.helpers import tree as T
from umbel.core.collecting import Collect
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import WeightedMean, product
from umbel.core.records import Payload, Reply
from umbel.core.wire.identity import fingerprint, greeting_signature
from umbel.core.wire.messages import decode_json, decode_work, encode_json, encode_outcome
from umbel.core.wire.work import Outcome, Work
from umbel.server.exchange import Exchange
from umbel.server.flower.internals import identify
from umbel.server.flower.message_port import MessagePort
from umbel.server.nodes import Directory

PAYLOAD = Payload({"model": T(w=[0.0, 0.0])})
FOLDS = {
    "mean": product({"delta": WeightedMean("model")}, ["loss"]),
    "collect": product({"delta": Collect("model")}, ["loss"]),
}
# Of the siblings (0 1) (2 3) (4 5) (6 7) 8, nobody holds both 2 and 3; node 2 has (4 5 6 7) whole.
HELD = {1: range(3), 2: range(3, 8), 3: range(8, 9)}
COHORT = tuple(range(9))
WORK = Work("run", "a", 1, 0, "train", "hash", 0)


def make_reply(client):
    value = torch.randn(2, generator=torch.Generator().manual_seed(client), dtype=torch.float64) * 10**client
    return Reply({"delta": {"w": value}}, {"loss": float(value[0])}, client + 1)


def work_honestly(message, fold, answer):
    work, _ = decode_work(message.content)
    outcome, tree = Outcome(bytes_up=16 * len(work.leaves)), FoldTree(fold, work.num_leaves)
    for client, place in work.leaves.items():
        tree.add_reply(place, client, answer(client))
    outcome.singles, outcome.nodes = dict(tree.replies()), list(tree.nodes())
    return outcome


class FakePort(MessagePort):
    """Nodes in this process; `behave` turns a node's honest outcome into what it sends.

    `examples` has the training examples that nodes declare for their clients.
    """

    def __init__(self, fold, behave, answer, examples=None):
        identify()
        self._fold, self._behave, self._answer, self._examples = fold, behave, answer, examples

    def nodes(self):
        return set(HELD)

    def stream(self, messages, deadline, on_wait=None):
        for message in reversed(list(messages)):
            node = message.metadata.dst_node_id
            if message.metadata.message_type == "query":
                answer = {"partitions": list(HELD[node]), "config_hash": "hash"}
                if self._examples is not None:
                    answer["examples"] = {str(client): self._examples[client] for client in HELD[node]}
                yield Message(encode_json(answer), reply_to=message)
                continue
            outcome = work_honestly(message, self._fold, self._answer)
            behave = self._behave.get(node, lambda outcome: [outcome])
            for answer in behave(outcome):
                if isinstance(answer, Exception):
                    yield error_reply(message, answer)
                else:
                    content = encode_outcome(answer) if isinstance(answer, Outcome) else answer
                    yield Message(content, reply_to=message)


def own(client, num_examples):
    """As many as the client has."""
    return num_examples


def exchange(fold, behave, answer=make_reply, examples=None, most_examples=own, num_examples=None):
    """Return what came of an exchange, its report, and how many were done after each answer.

    Args:
        fold: How replies combine.
        behave: For each node that is not honest, what it sends in place of its honest outcome.
        answer: Returns the honest reply of a client.
        examples: Training examples that nodes declare for their clients.
        most_examples: Returns the most that a reply may count, of those.
        num_examples: Returns the training examples of a client, as the server knows them.
    """
    port = FakePort(fold, behave, answer, examples)
    directory = Directory(port, "hash", len(COHORT), 1.0)
    directory.wait()
    done = []
    phase = Exchange(port, directory, 5.0, 1 << 20, done.append, lambda: None, num_examples)
    return *phase.run(WORK, PAYLOAD, COHORT, fold, most_examples=most_examples), done


def without(fold, clients, answer=make_reply):
    """What comes of the others, in one process."""
    replies = FoldTree(fold, len(COHORT))
    for place, client in enumerate(COHORT):
        replies.add_reply(place, client, None if client in clients else answer(client))
    return fold.finish(replies.root())


def same(left, right):
    assert (left.num_examples, left.num_replies, left.numbers) == (
        right.num_examples,
        right.num_replies,
        right.numbers,
    )
    for name, tree in right.trees.items():
        assert left.trees[name].keys() == tree.keys()
        assert all(torch.equal(left.trees[name][key], tree[key]) for key in tree)
    return True


def change_nodes(outcome, **changes):
    outcome.nodes = [
        (level, index, replace(partial, **{k: v(partial) for k, v in changes.items()}))
        for level, index, partial in outcome.nodes
    ]
    return outcome


def nodes_trees(change):
    def changed(partial):
        return {name: {key: change(t) for key, t in tree.items()} for name, tree in partial.trees.items()}

    return lambda outcome: [change_nodes(outcome, trees=changed)]


def single(client, change):
    def behave(outcome):
        outcome.singles[client] = change(outcome.singles[client])
        return [outcome]

    return behave


class Greeted(MessagePort):
    """Nodes in this process that are only greeted; `answers` has, for each that is there, what it says.

    An answer is a mapping, an error, or a function of what the node is asked.
    """

    strangers = True

    def __init__(self, answers):
        identify()
        self.answers = answers
        self.num_greeted = Counter()

    def nodes(self):
        return set(self.answers)

    def stream(self, messages, deadline, on_wait=None):
        for message in messages:
            node = message.metadata.dst_node_id
            self.num_greeted[node] += 1
            answer = self.answers[node]
            answer = answer(decode_json(message.content), node) if callable(answer) else answer
            if isinstance(answer, Exception):
                yield error_reply(message, answer)
            else:
                yield Message(encode_json(answer), reply_to=message)


def node_of(key, partitions, *, of=None, examples=None, **more):
    """A node that answers with a site's signature.

    Args:
        key: What it signs with.
        partitions: The clients that it claims.
        of: The key that it says it has, in place of `key`.
        examples: Training examples of each client.
        more: What else it says.
    """

    def answer(asked, node):
        said = {"partitions": list(partitions), "config_hash": "hash", "version": "0.1.0", **more}
        if examples is not None:
            said["examples"] = {str(client): number for client, number in examples.items()}
        site = greeting_signature(key, asked, node, said)
        return {**said, "site": site if of is None else {**site, "key": fingerprint(of)}}

    return answer
