"""The local training loop, which every strategy's client half runs through, and its fast modes."""

from __future__ import annotations

from umbel.core.training.config import LocalConfig as LocalConfig
from umbel.core.training.config import learning_rate as learning_rate
from umbel.core.training.config import num_processed as num_processed
from umbel.core.training.corrections import AffineCorrection as AffineCorrection
from umbel.core.training.corrections import Correction as Correction
from umbel.core.training.loop import Augmentation as Augmentation
from umbel.core.training.loop import Constrained as Constrained
from umbel.core.training.loop import Objective as Objective
from umbel.core.training.loop import Trainer as Trainer
from umbel.core.training.loop import TrainReport as TrainReport
from umbel.core.training.loop import full_gradient as full_gradient
from umbel.core.training.loop import make_optimizer as make_optimizer
from umbel.core.training.loop import train as train
from umbel.core.training.steps import Loss as Loss
