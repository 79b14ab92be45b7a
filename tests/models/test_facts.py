"""What is said of a model without running it, by hand for the plain CNN."""

import torch
from torch import nn
from torch.nn import functional as F

from umbel.models import build
from umbel.models.base import Model
from umbel.models.facts import activation_bytes, facts, macs, smallest


def test_the_cnn_by_hand():
    cnn_facts = facts("cnn", 10, 28, 1)
    convolutions = 28 * 28 * 9 * 1 * 16 + 14 * 14 * 9 * 16 * 32
    assert cnn_facts.macs == convolutions + 1568 * 64 + 64 * 10
    assert cnn_facts.parameters == 105_866
    assert cnn_facts.bytes_per_round == 8 * 105_866
    assert (cnn_facts.image_size, cnn_facts.in_channels, cnn_facts.smallest) == (28, 1, 4)
    assert cnn_facts.norms == {"batch": 0, "layer": 0, "group": 0}


class Square(Model):
    """Keeps its input and the square of it for the backward pass, and features for the head's."""

    def __init__(self):
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 16, 1, 4
        self.weight = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 2)

    def features(self, x):
        return F.relu(x.flatten(1) * self.weight)


def test_activations_are_counted_once_and_parameters_not():
    with torch.device("meta"):
        model = Square()
    # the images (for the product), and the result of relu (for its own gradient and the head's)
    assert activation_bytes(model) == 4 * (16 + 16)
    assert macs(model) == 32


def test_norms_and_smallest():
    cvt_facts = facts("cvt_tiny32", 10)
    assert cvt_facts.norms == {"batch": 9, "layer": 10, "group": 0}
    assert smallest("cvt_tiny32") == 4
    with torch.device("meta"):
        assert cvt_facts.macs == macs(build("cvt_tiny32", 10))
