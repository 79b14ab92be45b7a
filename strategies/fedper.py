"""FedPer: federated learning with personalization layers.

Arivazhagan, Aggarwal, Singh, Choudhary. arXiv:1912.00818, algorithms 1 and 2, in delta form.

| paper | here | meaning |
|---|---|---|
| W_B | `State.model` | base layers, which all share |
| W_P_j | memory of client j | personalization layers: the model's `head` |
| e, b, eta_j | `client.epochs`, `client.batch_size`, `client.lr` | local passes, batch, learning rate |
| gamma_j | `strategy.weighting` | weight of client j, n_j / sum n |

    client   (W_B,j, W_P_j) <- SGD of the local loss from (W_B, W_P_j), all layers together
    server   W_B <- sum_j gamma_j W_B,j

The head never travels: it is neither in what the server sends nor in a reply. Each client's begins as the model was
initialised, the same for all, and goes on in the client's memory. The paper has any number of personalization layers on
top; here it is the last one. The body alone is no classifier: on the server it is evaluated under the head as
initialised, which says little. What counts is each client's own accuracy.
"""

from __future__ import annotations

from umbel.strategies.base import Setting
from umbel.strategies.fedavg import FedAvg
from umbel.strategies.setting import refuse_collapse_of_own_parts


class FedPer(FedAvg):
    """FedAvg of the body, under a head of each client's own."""

    local_parts = ("head",)
    is_generic = False

    def check(self, setting: Setting) -> None:
        refuse_collapse_of_own_parts(setting, "fedper")
