"""The pictures that reports draw of metrics: their titles and what is on their axes."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito (2008), without yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


@dataclass(frozen=True)
class Chart:
    """A picture that several measures may share.

    Attributes:
        title: Above it.
        axis: What is on the axis of values, with its unit where that is no fraction.
        percent: Whether its values are shares, to be shown in per cent.
        across: What is counted on the other axis.
        num_colours: After so many curves colours begin again, with another dash; None for as many as there are.
    """

    title: str
    axis: str = "accuracy"
    percent: bool = True
    across: str = "round"
    num_colours: int | None = None

    @property
    def alternative(self) -> str:
        """What it shows, for those who cannot see it."""
        return self.title.lower()


TEST_ACCURACY = "test accuracy"
_OWN_TEST = "accuracy on the client's own test"

ACCURACY = Chart("Accuracy by round")
# One way's recalls at 1, 5 and 10 are solid, the other's are dashed.
RECALLS = Chart("Recall on test pairs by round", "recall", num_colours=3)
SUMS_OF_RECALLS = Chart("Sum of recalls by round", "sum of six recalls, of 600", percent=False)
PREDICTORS = Chart("Accuracy of each predictor by round")
GROUPS = Chart("Test accuracy by frequency of the class")
CLIENTS_RECALLS = Chart("Clients' recall on their own pairs", "recall, mean", num_colours=3)
LOSS = Chart("Loss by round", "cross-entropy in nats", percent=False)
TASKS = Chart("Test accuracy on each task by round")
# The curves of a run, in the order of its report.
CURVES = (ACCURACY, RECALLS, SUMS_OF_RECALLS, PREDICTORS, GROUPS, CLIENTS_RECALLS, LOSS, TASKS)

AFTER_TASKS = Chart("After each task", "", across="tasks trained on")
TASK_MATRIX = Chart("Accuracy on each task after each task", TEST_ACCURACY)
COLLAPSE = Chart("Neural collapse", "")
LAST_GROUPS = Chart("Classes by frequency, last round", TEST_ACCURACY)
LAST_DOMAINS = Chart("Test accuracy by domain, last round", TEST_ACCURACY)
CLIENTS = Chart("Clients' accuracy, last round", _OWN_TEST)
CLIENTS_BY_PREDICTOR = Chart("Clients' accuracy by predictor, last round", _OWN_TEST)

# What is on the axis of a cost, in what unit, and how many of its own unit that is; by `umbel.core.schedule.COSTS`.
COST_AXES = {
    "steps": ("steps of training", 1.0),
    "examples": ("examples trained on", 1.0),
    "flops": ("GFLOP", 1e9),
    "bytes": ("MB of tensors moved", 1e6),
    "seconds": ("seconds", 1.0),
}
