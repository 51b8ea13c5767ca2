"""A tokenizer's picture: what is kept, what scores, and seams that do not show."""

import weakref

import numpy as np
import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.clip import ClipForm
from tatscli.recipe.schema import AdaptiveTokenizer, Data, FsqTokenizer, Recipe
from tatscli.tasks.mask_setup import Overrides
from tatscli.tasks.visualize_tokenizer import visualize_tokenizer
from tatscli.tokenizer.build import build_tokenizer
from tatscli.visualize import codes as module
from tatscli.visualize.codes import Coder, coding_rows, render_codes
from tests.clips import pan, render
from tests.tokenizer.saved import save_tokenizer
from tests.visualize.fakes import layout

FRAMES, SIZE, KEEP = 8, 32, 20
GRID = (4, 4, 4)


def build(config):
    torch.manual_seed(0)
    recipe = Recipe(data=Data(store="", frames=FRAMES, size=SIZE), tokenizer=config)
    return build_tokenizer(recipe).eval()


def adaptive(**changes):
    return build(
        AdaptiveTokenizer(
            kind="adaptive",
            stride=8,
            patch=4,
            widths=[8, 8],
            blocks=1,
            scorer_width=8,
            **({"keep": KEEP} | changes),
        )
    )


def image():
    return build(FsqTokenizer(kind="fsq", stride=8, patch=4, widths=[8, 8], blocks=1))


def video(frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, 3, SIZE, SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def rows(tokenizer, seen):
    coding = Coder(tokenizer).look(seen)
    return {row.label: row for row in coding_rows(seen, coding, tokenizer.codebook_size)}, coding


def tokens(panels: np.ndarray) -> np.ndarray:
    """Cut panels into codes: (N, frames, rows, columns, 3)."""
    t, h, w = GRID
    cut = panels.reshape(t, len(panels) // t, h, panels.shape[1] // h, w, panels.shape[2] // w, 3)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6).reshape(t * h * w, len(panels) // t, -1, 48, 3)


def test_only_a_tokenizer_with_scores_shows_scores_and_what_is_kept():
    labels = [list(rows(one, video())[0]) for one in (adaptive(), adaptive(keep=None), image())]
    plain = ["input", "reconstruction", "codes"]
    assert labels == [["input", "reconstruction", "scores", "kept codes", "codes"], plain, plain]


def test_exactly_the_codes_left_out_are_hatched():
    seen = video()
    found, coding = rows(adaptive(), seen)
    kept_N = coding.kept_thw.flatten().tolist()
    assert sum(kept_N) == 16 + KEEP and all(kept_N[:16])  # the first slice is always kept
    shown, whole = (tokens(found[label].panels_TYX3) for label in ("kept codes", "input"))
    for token, kept in enumerate(kept_N):
        if kept:
            assert (shown[token] == whole[token]).all()
        else:
            assert set(np.unique(shown[token])) == {40, 64}
    assert "kept 36 of 64 codes" in found["reconstruction"].notes
    assert found["kept codes"].notes == ["kept 36 of 64 codes, the rest is hatched"]


def test_the_reconstruction_is_what_the_kept_codes_hold():
    tokenizer, seen = adaptive(), video()
    found, coding = rows(tokenizer, seen)
    frames_1CTHW = seen.transpose(0, 1)[None] / 255
    right = tokenizer.reconstruct(frames_1CTHW)
    torch.testing.assert_close(coding.reconstruction_TCHW, right.video_BCTHW[0].transpose(0, 1))
    assert torch.equal(coding.kept_thw, right.kept_Bthw[0] > 0)
    assert torch.equal(coding.codes_thw, tokenizer.encode(frames_1CTHW)[0])  # of every place
    error = (coding.reconstruction_TCHW - seen / 255).square().flatten(1).mean(1)
    psnr = (-10 * error.log10()).mean()
    assert found["reconstruction"].notes[0].startswith(f"PSNR {psnr:.1f} dB")


def test_scores_are_coloured_by_rank_and_told_as_multiples_of_the_mean():
    found, coding = rows(adaptive(), video())
    lift_N = (coding.scores_thw / coding.scores_thw.mean()).flatten()
    scale = found["scores"].scale
    assert (scale.low, scale.high) == (f"{lift_N.min():.2f}x", f"{lift_N.max():.2f}x")
    grey = tokens(found["input"].panels_TYX3).mean(axis=(1, 2, 3, 4))
    tint = tokens(found["scores"].panels_TYX3).mean(axis=(1, 2, 3, 4)) - 0.3 * grey
    order = lift_N.argsort().numpy()
    assert (np.diff(tint[order]) > -1).all()  # brightness rises, but for rounding to whole greys
    assert tint[order[-1]] > tint[order[0]] + 50


def test_a_still_clip_has_scores_of_zero_and_a_scale():
    still = video(1).expand(FRAMES, -1, -1, -1)
    row = rows(adaptive(), still)[0]["scores"]
    assert (row.scale.low, row.scale.high) == ("0.00x", "0.00x")
    tint = (
        row.panels_TYX3 - 0.3 * rows(adaptive(), still)[0]["input"].panels_TYX3.mean(-1)[..., None]
    )
    assert (np.ptp(tint, axis=(0, 1, 2)) <= 1).all()


@pytest.mark.parametrize("make", [adaptive, image])
def test_window_by_window_a_video_is_coded_as_it_is_whole(make):
    """No seam: the first slice of a window is compared with the last of the one before it."""
    tokenizer, whole = make(), video(3 * FRAMES)
    coder = Coder(tokenizer)
    parts = [coder.look(one, follows=True) for one in whole.split(FRAMES)]
    right = tokenizer.code(whole.transpose(0, 1)[None] / 255)
    assert torch.equal(torch.cat([one.codes_thw for one in parts]), right.codes_Bthw[0])
    if tokenizer.scored:
        scores_thw = torch.cat([one.scores_thw for one in parts])
        torch.testing.assert_close(scores_thw, right.scores_Bthw[0])
        middle = whole[FRAMES : 2 * FRAMES]
        alone = Coder(tokenizer).look(middle).scores_thw
        assert not torch.allclose(alone[0], parts[1].scores_thw[0])
        # A window that does not follow has no window before it.
        assert torch.equal(coder.look(middle).scores_thw, alone)


def test_facts_tell_codes_scores_and_the_share_kept(tmp_path):
    clip = render(tmp_path / "clip.mp4", pan((2, 0), frames=24, height=48, width=64))
    for tokenizer, scored in ((adaptive(), True), (image(), False)):
        facts, frames = [], tokenizer.frames
        form = ClipForm((FRAMES // frames, 4, 4), frames, 8)
        made = layout("title", 1, frames=FRAMES)
        watch = lambda window, coding, facts=facts: facts.append(coding.facts(window))  # noqa: E731
        render_codes(clip, tmp_path / "out.gif", tokenizer, form, made, watch=watch)
        assert [one["frames"][0] for one in facts] == [0, 8, 16]
        for one in facts:
            assert torch.tensor(one["codes"]).shape == form.grid
            assert ({"scores", "kept"} <= one.keys()) == scored
            if scored:
                assert torch.tensor(one["scores"]).shape == form.grid
                assert one["kept"] == round(36 / 64, 4)
                assert all(x == float(f"{x:.4g}") for x in np.ravel(one["scores"]))


def test_a_quarter_of_a_million_codes_have_colours():
    """Neighbours on the grid of codes look different."""
    colours = [module._colour(code) for code in range(262_140, 262_144)]
    assert len(set(colours)) == 4
    spread = np.ptp(np.array(colours), axis=0)
    assert (spread > 60).all()


def test_a_film_holds_no_more_than_a_few_windows(tmp_path, monkeypatch):
    clip = render(tmp_path / "clip.mp4", pan((2, 0), frames=64, height=48, width=64))
    config = AdaptiveTokenizer(
        kind="adaptive", stride=8, patch=4, widths=[8, 8], blocks=1, keep=KEEP, scorer_width=8
    )
    run = save_tokenizer(tmp_path / "run", config, size=SIZE, frames=FRAMES)
    seen, alive = [], []
    look = Coder.look

    def spy(self, video_TCHW, **more):
        seen.append(weakref.ref(video_TCHW))
        alive.append(sum(one() is not None for one in seen))
        return look(self, video_TCHW, **more)

    monkeypatch.setattr(Coder, "look", spy)
    say = Reporter(quiet=True)
    overrides = Overrides(stride=1)
    found = visualize_tokenizer(
        clip, run, reporter=say, overrides=overrides, out=tmp_path / "a.gif"
    )
    assert len(found["windows"]) == len(seen) == 8
    assert max(alive) <= 3  # the first, the one before and this one
