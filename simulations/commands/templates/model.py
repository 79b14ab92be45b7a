"""What this model is: two convolutions, and the mean of their maps."""

from __future__ import annotations

from torch import Tensor, nn

from umbel.models import Model


class NewModel(Model):
    """Two convolutions, and the mean of their maps."""

    def __init__(self, num_classes: int, image_size: int = 8, in_channels: int = 1, *, width: int = 16) -> None:
        """Build it, with weights from torch's global generator, which umbel seeds.

        Args:
            num_classes: Number of logits.
            image_size: Height and width of an image; the default is what `umbel list models` shows.
            in_channels: 1 for grey, 3 for colour.
            width: Channels of the convolutions; a size of your own is a keyword with a default.
        """
        super().__init__()
        self.num_features, self.image_size, self.in_channels = width, image_size, in_channels
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)  # the last, so that it ends the state dict

    def features(self, x: Tensor) -> Tensor:
        """Return features [batch, num_features] of images [batch, in_channels, image_size, image_size]."""
        self.check_input(x)
        maps: Tensor = self.trunk(x)
        return maps.mean(dim=(2, 3))
