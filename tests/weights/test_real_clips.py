"""Real clips through transformers' VideoMAE and ours, both ways, S and B of published spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.nn.load import open_checkpoint
from tatscli.tasks.convert import convert
from tests.weights.models import (
    BASE,
    NANO,
    SMALL,
    both_guesses,
    equal,
    hf_model,
    hf_scores,
    our_scores,
    with_our_eps,
)

transformers = pytest.importorskip("transformers", reason="needs the `hf` extra")
transformers.utils.logging.disable_progress_bar()

CLIPS = ("bottles.mp4", "asl_book.mkv", "cars_from_above.mp4")
QUIET = Reporter(quiet=True)

pytestmark = pytest.mark.shared
FORMS = [
    pytest.param(NANO, id="nano"),
    pytest.param(SMALL, id="small", marks=pytest.mark.slow),
    pytest.param(BASE, id="base", marks=pytest.mark.slow),
]


def real_video(folder: Path, frames: int, size: int) -> Tensor:
    """Every second frame of the beginning of three clips, squeezed into squares: uint8."""
    videos = []
    for name in CLIPS:
        found = []
        with av.open(folder / "clips" / "real" / name) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % 2 == 0:
                    found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(found) == frames:
                    break
        pictures = torch.stack(found).permute(0, 3, 1, 2).float()
        pictures = torch.nn.functional.interpolate(pictures, size=(size, size), mode="area")
        videos.append(pictures.round().to(torch.uint8).transpose(0, 1))
    return torch.stack(videos)


@pytest.mark.parametrize("sizes", FORMS)
def test_classifiers_score_alike(shared: Path, tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = hf_model("finetuned", sizes)
    model.save_pretrained(tmp_path / "theirs")
    run = open_checkpoint(tmp_path / "theirs")
    video = real_video(shared, run.recipe.data.frames, run.recipe.data.view_size[0])
    ours, exact = our_scores(run, video), hf_scores(with_our_eps(model), video, run)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)
    back = there_and_back(tmp_path, transformers.AutoModelForVideoClassification)
    equal(back.state_dict(), model.state_dict())
    if sizes is not BASE:  # forward passes of that take a minute each
        assert (ours - hf_scores(back, video, run)).abs().max() < 1e-4


@pytest.mark.parametrize("sizes", FORMS)
def test_pretrainings_guess_alike(shared: Path, tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = hf_model("pretrained", sizes)
    model.save_pretrained(tmp_path / "theirs")
    run = open_checkpoint(tmp_path / "theirs")
    video = real_video(shared, run.recipe.data.frames, run.recipe.data.view_size[0])
    ours, exact = both_guesses(with_our_eps(model), run, video)
    assert ours[0].std() > 0.1
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)
    back = there_and_back(tmp_path, transformers.VideoMAEForPreTraining)
    equal(back.state_dict(), model.state_dict())
    if sizes is not BASE:
        _, (as_it_is, _) = both_guesses(back, run, video)
        assert (ours[0] - as_it_is).abs().max() < 1e-4


def there_and_back(folder: Path, model_class: Any) -> Any:
    """Convert `theirs` into a run of ours and that into a folder, and open it with transformers."""
    convert(folder / "theirs", to="tats", out=folder / "run", reporter=QUIET)
    convert(folder / "run", to="hf", out=folder / "back", reporter=QUIET)
    return model_class.from_pretrained(folder / "back").eval()
