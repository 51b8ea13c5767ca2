import torch

from tatscli.data.normalize import standardized, to_unit


def test_bytes_become_standardised_colours() -> None:
    video = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    before = video.clone()
    unit = to_unit(video)
    assert (unit.dtype, unit.min() >= 0, unit.max() <= 1) == (torch.float32, True, True)
    assert torch.equal((unit * 255).round().to(torch.uint8), before)
    standard = standardized(video, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    for colour, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 0.125))):
        torch.testing.assert_close(standard[:, colour], (unit[:, colour] - mean) / std)
    assert standard.dtype == torch.float32
    assert torch.equal(video, before)
