"""Small models with weights that no initialisation gives, and what a stream of each must equal."""

import torch

import bvtam
from bvtam.clip import ClipConfig


def random_net(name, seed=0, **options):
    """A net whose batch norms, and temporal weights, are not as at the start."""
    net = bvtam.create_model(name, num_classes=5, drop_rate=0.0, **options).eval().double()
    generator = torch.Generator().manual_seed(seed)
    for key, value in net.state_dict().items():
        if key.endswith(('running_mean', 'bias')):
            value.normal_(generator=generator)
        elif key.endswith('running_var') or (value.ndim == 1 and key.endswith('weight')):
            value.uniform_(0.5, 1.5, generator=generator)
        elif 'temporal.weight' in key:
            value.normal_(generator=generator)
    return net


def clip(frames, height, width, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, frames, height, width, dtype=torch.float64, generator=generator)


def assert_streams(net, video, last=None):
    """Every step is that of the whole video, as late as the stream says, whatever was before."""
    with torch.no_grad():
        features, logits = net.forward_features(video), net(video)
    stream = bvtam.stream(net, last)
    per_step = net.frames_per_step
    for _ in range(2):  # a stream can be used again
        steps = []
        for number, frame in enumerate(video.unbind(2)):
            found = stream.push(frame)
            for step in found:
                end = per_step * (step.index + 1) - 1  # its last frame
                assert number - end == stream.delay
            steps += found
        steps += stream.finish()
        assert [step.index for step in steps] == list(range(features.shape[2]))
        # Deep models without a norm after their sums make 1e-9 of the largest out of one rounding.
        largest = features.abs().max().item()
        found = torch.stack([s.features for s in steps], 2)
        torch.testing.assert_close(found, features, rtol=1e-7, atol=1e-7 * largest)
        if last is None:
            torch.testing.assert_close(steps[-1].logits, logits)
    return stream, steps


CLIP = ClipConfig(num_frames=16, resize=36, crop_size=32)


def classifier(name='bvtam_tiny_8x2', **options):
    net = random_net(name, **options).float()
    net.clip_config, net.label_names = CLIP, list('abcde')
    return net


class Notes(list):
    """What a model writes down while it runs, also where a copy of it runs."""

    def __deepcopy__(self, memo):
        return self
