"""Clips and images in UniFormer's form for clips: the image form inside it, the order of frames, and motion."""

import pytest
import torch
from torch.nn import functional as F

from tests.models_helpers import perturbed, seeded_with
from umbel.models import build
from umbel.models.uniformer_blocks import LocalBlock

seeded = seeded_with(13)


def clip(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def inflate(deep, flat):
    """Give the form for clips the weights of the form for images, in the middle of its kernels over time."""
    state = flat.state_dict()
    for key, tensor in deep.state_dict().items():
        if tensor.dim() == 5:
            middle = torch.zeros_like(tensor)
            middle[:, :, tensor.shape[2] // 2] = state[key]
            state[key] = middle
    deep.load_state_dict(state)
    return deep.double()


@pytest.mark.parametrize("training", [True, False])
def test_without_kernels_over_time_local_blocks_take_each_frame_alone(training):
    flat = perturbed(LocalBlock(4, 2, 0.0)).train(training)
    deep = inflate(LocalBlock(4, 2, 0.0, dimensions=3), flat).train(training)
    x = clip(2, 4, 3, 5, 4)
    frames = flat(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(deep(x), frames)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_without_kernels_over_time_a_still_clip_is_an_image(frames, training):
    """Equal frames are one to batch norm, to attention over all frames and to the mean."""
    flat = perturbed(build("uniformer_tiny32", 5, 14, 2)).train(training)
    deep = inflate(build("uniformer3d_tiny32", 5, 14, 2, num_frames=frames), flat).train(training)
    x = clip(3, 2, 14, 14)
    torch.testing.assert_close(deep(x), flat(x), rtol=1e-9, atol=1e-9)


def test_without_kernels_over_time_the_order_of_frames_is_lost():
    flat = perturbed(build("uniformer_tiny32", 5, 12, 2))
    deep = inflate(build("uniformer3d_tiny32", 5, 12, 2, num_frames=6), flat)
    x = clip(3, 2, 6, 12, 12)
    order = torch.tensor([4, 1, 0, 3, 2, 5])  # of every second frame, which are all that are read
    torch.testing.assert_close(deep(x[:, :, order]), deep(x))


@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_a_still_clip(training):
    model = build("uniformer3d_tiny32", 5, 12, 2, num_frames=5).train(training)
    x = torch.randn(3, 2, 12, 12)
    assert torch.equal(model(x), model(x[:, :, None].repeat(1, 1, 5, 1, 1)))


def test_the_order_of_frames_matters():
    model = perturbed(build("uniformer3d_tiny32", 5, 12, 2, num_frames=6))
    x = clip(3, 2, 6, 12, 12)
    logits = model(x)
    assert ((model(x.flip(2)) - logits).abs().amax(1) > 1e-3).all()
    for frame in range(6):
        changed = x.clone()
        changed[:, :, frame] += 1
        assert ((model(changed) - logits).abs().amax(1) > 1e-3).all(), frame  # no frame is lost


def moving_squares(number, frames, size, generator):
    """Squares that move to the left (0) or to the right (1), a pixel a frame and round the edge.

    A frame alone says nothing: its square is anywhere, whatever the class.
    """
    labels = torch.arange(number) % 2
    offsets = torch.randint(size, (number, 2), generator=generator)
    square = torch.zeros(1, size, size)
    square[:, :3, :3] = 1
    clips = [
        torch.stack([square.roll((row, column + t * (2 * label - 1)), (1, 2)) for t in range(frames)], dim=1)
        for (row, column), label in zip(offsets.tolist(), labels.tolist(), strict=True)
    ]
    return torch.stack(clips), labels


def test_motion_is_learnt_and_a_frame_does_not_show_it():
    def accuracy(still):
        torch.manual_seed(1)
        source = torch.Generator().manual_seed(2)
        model = build("uniformer3d_tiny32", 2, 8, 1, dims=(8, 8, 16, 16), head_dim=8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def draw(number):
            x, labels = moving_squares(number, model.num_frames, 8, source)
            frame = torch.randint(model.num_frames, (number,), generator=source)
            return x[torch.arange(number), :, frame] if still else x, labels

        for _ in range(40):
            x, labels = draw(32)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
        x, labels = draw(256)
        with torch.no_grad():
            return (model.eval()(x).argmax(1) == labels).double().mean().item()

    assert accuracy(still=False) > 0.8
    assert 0.4 < accuracy(still=True) < 0.6
