"""LG-FedAvg: federated learning with local and global representations.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency. "Think Locally, Act Globally", arXiv:2001.01523,
algorithm 1 with a supervised local representation, in delta form.

| paper | here | meaning |
|---|---|---|
| l_m(.; theta_m^l) | memory of client m | local representation: all of the model but its head |
| g(.; theta^g) | `State.model` | global model on top of it: the model's `head`, which all share |
| H_m | `features` | representation of an image |
| N_m / N | `strategy.weighting` | weight of client m |

    client   (theta_m^l, theta_m^g) <- SGD of the local loss from (theta_m^l, theta^g), both together
    server   theta^g <- sum_m N_m / N theta_m^g

The other way round than FedPer: the body never travels, begins as the model was initialised, the same for all, and goes
on in the client's memory. The head alone is no classifier: on the server it is evaluated on the body as initialised,
which says little. What counts is each client's own accuracy. The paper predicts for someone new by the mean of all
clients' models, which nobody here has in one place; it also lets the global model have more layers than the last.
"""

from __future__ import annotations

from umbel.strategies.base import Setting
from umbel.strategies.fedavg import FedAvg
from umbel.strategies.setting import refuse_collapse_of_own_parts


class LGFedAvg(FedAvg):
    """FedAvg of the head, on a body of each client's own."""

    local_parts = ("body",)
    is_generic = False

    def check(self, setting: Setting) -> None:
        refuse_collapse_of_own_parts(setting, "lgfedavg")
