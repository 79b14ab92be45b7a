"""What is measured over a sequence of tasks: accuracy, forgetting and transfer, from a matrix of accuracies.

R[i][t] is the accuracy on task t after training on task i, i = 0 .. T-1; `before[t]` that of the untrained model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def summarise(matrix: Matrix, before: Sequence[float] | None = None) -> dict[str, float]:
    """Summarise what is known after the last row of the matrix.

    With i the number of the last row:

    * `acc`: mean accuracy over the tasks seen, mean_{t <= i} R[i][t] (Lopez-Paz and Ranzato 2017);
    * `forgetting`: mean_{t < i} (R[t][t] - R[i][t]), from the end of each task's own training;
    * `max_forgetting`: the same from the best there ever was, mean_{t < i} (max_{t <= j < i} R[j][t] - R[i][t])
      (Chaudhry et al. 2018);
    * `bwt`: backward transfer, the negative of `forgetting`;
    * `fwt`: forward transfer, mean_{0 < t <= i} (R[t-1][t] - before[t]), if `before` is known.

    Args:
        matrix: Rows 0 .. i, each over all T tasks.
        before: [T].

    Returns:
        The metrics; those that need two tasks are left out after the first.
    """
    last = len(matrix) - 1
    if last < 0:
        return {}
    now = matrix[last]
    measures = {"acc": math.fsum(now[: last + 1]) / (last + 1)}
    if last:
        lost = [matrix[t][t] - now[t] for t in range(last)]
        measures["forgetting"] = math.fsum(lost) / last
        peaks = [max(matrix[j][t] for j in range(t, last)) for t in range(last)]
        measures["max_forgetting"] = math.fsum(peak - now[t] for t, peak in enumerate(peaks)) / last
        measures["bwt"] = -measures["forgetting"]
        if before is not None:
            ahead = [matrix[t - 1][t] - before[t] for t in range(1, last + 1)]
            measures["fwt"] = math.fsum(ahead) / last
    return measures
