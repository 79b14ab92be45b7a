"""The stages of a round, and the functions that they consist of.

A function that somebody renames has to be renamed here: the profile, and a test, fail until it is.
"""

from __future__ import annotations

# In the order of a round.
MEANINGS = {
    "select": "who takes part, in which places, on which nodes",
    "send": "payload and work encoded and handed out",
    "load": "work decoded, the client's data found, weights put into the model",
    "train": "the local steps",
    "answer": "weights taken out of the model, the answer encoded, fetched and decoded",
    "guard": "checks of what came back, what clients share put back as it was, their deadlines",
    "fold": "lift, merge, finish",
    "update": "the server's step, and the check of its state",
    "evaluate": "on the server and on clients",
    "write": "metrics, progress, checkpoints",
    "wait": "for workers",
}
STAGES = tuple(MEANINGS)

# module -> function or method -> stage
FUNCTIONS = {
    "umbel.server.session": {
        "Session.phases": "select",
    },
    "umbel.server.cohorts": {"Cohorts.of": "select", "Cohorts.dropped_out": "select", "Cohorts.idle": "select"},
    "umbel.server.nodes": {"Directory.refresh": "select", "Directory.split": "select"},
    "umbel.core.wire.work": {"share": "select"},
    "umbel.core.fold_tree": {"FoldTree.add": "fold", "FoldTree.add_reply": "fold", "FoldTree.root": "fold"},
    "umbel.core.flat": {"flattened": "send"},
    "umbel.strategies.base": {"Strategy.send_model": "send"},
    "umbel.core.wire.heads": {
        "work_framing": "send",
        "reply_framing": "answer",
    },
    "umbel.core.wire.packed": {"Packed.of": "answer", "Packed.unpacked": "answer"},
    "umbel.client.host": {
        "Host.load": "load",
        "Clients.context": "load",
        "Clients.data": "load",
        "Host.weights": "answer",
        "Host.take_back": "guard",
    },
    "umbel.client.lending": {
        "LentPayload.__init__": "load",
        "LentPayload.lend": "load",
        "LentPayload.take_back": "guard",
        "LentData.take_back": "guard",
    },
    "umbel.client.shared": {"Shared.__init__": "guard", "Shared.put_back": "guard"},
    "umbel.client.deadline": {"attempt": "guard"},
    "umbel.core.training": {"train": "train"},
    "umbel.strategies.steps": {"train_and_subtract": "answer", "server_step": "update"},
    "umbel.core.records": {"plain": "guard"},
    "umbel.core.folds": {
        "Product.check": "guard",
        "Product.check_partial": "guard",
        "Product.agree": "guard",
        "Product.lift": "fold",
        "Product.merge": "fold",
        "Product.finish": "fold",
    },
    "umbel.server.receiver": {"Receiver.take": "answer"},
    "umbel.strategies.fedavg": {"FedAvg.update": "update"},
    "umbel.core.state": {"not_finite": "update"},
    "umbel.server.evaluation": {"on_server": "evaluate", "of_clients": "evaluate"},
    "umbel.client.evaluation": {"evaluate_client": "evaluate"},
    "umbel.server.results": {"RunFolder.add": "write", "RunFolder.look_for_stop": "write"},
    "umbel.server.listener": {"FileListener.put": "write"},
    "umbel.server.checkpoint": {"write": "write"},
    "umbel.simulations.engines.lines": {
        "Lines.lay": "send",
        "Lines.give": "send",
        "Lines.wait": "wait",
        "Lines._hear": "answer",
    },
    "ray": {"put": "send", "get": "answer", "wait": "wait"},
    "ray.actor": {"ActorMethod.remote": "send"},
}
