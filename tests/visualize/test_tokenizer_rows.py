"""What a selection finds salient, what a tokenizer's codes hold, what predicted codes come to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.heads.base import HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict import build_predict
from tatscli.masking.saliency import embedding_change_BN
from tatscli.recipe.schema import (
    CodesTarget,
    LatentsTarget,
    PixelTarget,
    PredictEverest,
    PredictTokenizer,
    RandomMask,
    RunTokenizer,
)
from tatscli.visualize.facts import facts_of
from tatscli.visualize.rows import rows_of
from tatscli.visualize.viewer import MaskedWindow, Viewer
from tests.tokenizer.windows import WindowTokenizer, give
from tests.visualize.fakes import GRID, PATCH, viewer, window

RANDOM = RandomMask(kind="random", ratio=0.75)
SOURCE = RunTokenizer(kind="run", path="runs/windows")
PIXELS = PixelTarget(kind="pixels")
TARGETS = {
    "codes": CodesTarget(kind="codes", tokenizer=SOURCE),
    "latents": LatentsTarget(kind="latents", tokenizer=SOURCE),
    "levels": LatentsTarget(kind="latents", tokenizer=SOURCE, loss="cross_entropy"),
}
WORDS = {
    "codes": "the likeliest code",
    "latents": "the nearest levels",
    "levels": "the likeliest levels",
}


class Guesser(nn.Module):
    """Predicts that every code of a predicted token is `code`, or the true ones where it is None.

    As the target wants it: logits of codes, latents a little off their levels, logits of levels.
    """

    def __init__(self, target, kind: str, code: int | None) -> None:
        super().__init__()
        self.target, self.kind, self.code = target, kind, code

    def forward(self, clip: Clip, plan: MaskPlan) -> HeadOutput:
        codes_BMR = self.target.asked.codes(clip, plan.predict_BM)
        if self.code is not None:
            codes_BMR = torch.full_like(codes_BMR, self.code)
        digits_BMRD = torch.stack([codes_BMR // 4**axis % 4 for axis in range(3)], dim=-1)
        if self.kind == "codes":
            found = F.one_hot(codes_BMR, 64).float()
        elif self.kind == "latents":
            found = (digits_BMRD - 2) / 2 + 0.2
        else:
            found = F.one_hot(digits_BMRD, 4).float()
        pixels_BMC = clip.unit(plan.predict_BM)
        return HeadOutput([pixels_BMC, found.flatten(2)])


@pytest.fixture
def tokenizer(monkeypatch) -> WindowTokenizer:
    made = WindowTokenizer(stride=PATCH // 2)  # four codes a token
    give(monkeypatch, made)
    return made


def guessing(kind: str, code: int | None = None) -> Viewer:
    made = viewer(RANDOM, targets=[PIXELS, TARGETS[kind]])
    target = list(made.system.targets.values())[1]
    return Viewer(made.system.called(Guesser(target, kind, code)), trained=True)


def selecting(made: Viewer, section) -> Viewer:
    system = made.system
    predicted = system.masker.predicted
    selection = build_predict(section, form=system.form, predicted=predicted)
    return replace(made, system=replace(system, predict=selection))


def look(made: Viewer) -> MaskedWindow:
    return made.mask(window(), Draws(0))


def by_token(video_CTHW: torch.Tensor) -> torch.Tensor:
    t, h, w = GRID
    parts = video_CTHW.unflatten(3, (w, -1)).unflatten(2, (h, -1)).unflatten(1, (t, -1))
    return parts.permute(1, 3, 5, 0, 2, 4, 6).reshape(t * h * w, -1)


def rows(made: Viewer, masked: MaskedWindow):
    target = made.code_target
    chosen = "" if target is None else target.chosen
    found = rows_of(window(), masked, grid=GRID, statistics=False, chosen=chosen)
    return {row.label: row for row in found}


def test_a_tokenizers_reconstruction_is_what_its_codes_hold(tokenizer):
    frames_1CTHW = window().video_TCHW.transpose(0, 1)[None] / 255
    right = tokenizer.decode(tokenizer.encode(frames_1CTHW))[0]
    asking = [
        viewer(RANDOM, targets=[PIXELS, TARGETS["codes"]]),  # of a recipe: nothing is trained
        selecting(viewer(RANDOM), PredictTokenizer(kind="tokenizer", tokenizer=SOURCE)),
        guessing("latents"),
    ]
    for made in asking:
        masked = look(made)
        assert torch.equal(masked.coded_CTHW, right)
        assert (masked.guessed_CTHW is None) == (not made.trained)
        row = rows(made, masked)["tokenizer's reconstruction"]
        side = row.panels_TYX3.shape[1] // 32
        shown = row.panels_TYX3[:, ::side, ::side].transpose(3, 0, 1, 2)
        assert np.abs(shown / 255 - right.numpy()).max() < 0.003
    assert look(viewer(RANDOM)).coded_CTHW is None
    brief = look(replace(asking[1], brief=True))
    assert brief.coded_CTHW is None and brief.saliency_N is None


@pytest.mark.parametrize("kind", list(TARGETS))
def test_predicted_codes_stand_among_the_true_ones(tokenizer, kind):
    perfect = look(guessing(kind))
    assert torch.equal(perfect.guessed_CTHW, perfect.coded_CTHW)
    made = guessing(kind, code=27)  # digits 3, 2, 1
    masked = look(made)
    predicted = set(masked.plan.predict_BM[0].tolist())
    guessed, coded = by_token(masked.guessed_CTHW), by_token(masked.coded_CTHW)
    one = tokenizer.decode(torch.full((1, 1, 2, 2), 27))[0]
    for token in range(32):
        if token in predicted:
            assert torch.equal(guessed[token], one.flatten())
        else:
            assert torch.equal(guessed[token], coded[token])
    (note,) = rows(made, masked)["predicted codes decoded"].notes
    assert note == (
        f"the model's codes ({WORDS[kind]}) at the {len(predicted)} predicted tokens, "
        "the true codes at all others, decoded together by the tokenizer"
    )


def test_vectors_of_a_codebook_are_not_taken_for_codes(tokenizer):
    tokenizer.levels = None
    made = guessing("latents")
    masked = look(made)
    assert masked.guessed_CTHW is None and masked.coded_CTHW is not None
    assert made.code_target.chosen == ""


def test_what_a_selection_finds_salient_is_a_row_and_a_fact(tokenizer):
    made = selecting(
        viewer(RANDOM), PredictTokenizer(kind="tokenizer", tokenizer=SOURCE, random=0, budget=4)
    )
    masked = look(made)
    frames_1CTHW = window().video_TCHW.transpose(0, 1)[None] / 255
    scores_thw = tokenizer.code(frames_1CTHW).scores_Bthw[0]
    right = F.avg_pool2d(scores_thw, 2).flatten()  # of the four codes of a token
    torch.testing.assert_close(masked.saliency_N, right)
    hidden = masked.plan.hidden_BN(32)[0]
    chosen = masked.plan.predict_BM[0]
    hidden[chosen] = False
    assert right[chosen].min() >= right[hidden].max()
    found = rows(made, masked)
    assert list(found) == [
        "input",
        "saliency",
        "visible tokens",
        "decoder-selected tokens",
        "tokenizer's reconstruction",
        "motion",
    ]
    lift_N = right / right.mean()
    scale = found["saliency"].scale
    assert (scale.low, scale.high) == (f"{lift_N.min():.2f}x", f"{lift_N.max():.2f}x")
    facts = facts_of(window(), masked, GRID)
    assert facts["saliency"] == [float(f"{one:.4g}") for one in right.tolist()]
    everest = selecting(viewer(RANDOM), PredictEverest(kind="everest"))
    masked = look(everest)
    system = everest.system
    clip = system.clip(window().video_TCHW.transpose(0, 1)[None])
    torch.testing.assert_close(masked.saliency_N, embedding_change_BN(clip.tokens_BND, 2)[0])
    assert "saliency" not in facts_of(window(), look(viewer(RANDOM)), GRID)


def test_exactly_the_tokens_the_decoder_predicts_are_shown(tokenizer):
    made = selecting(viewer(RANDOM), PredictEverest(kind="everest", budget=5))
    masked = look(made)
    found = rows(made, masked)
    row = found["decoder-selected tokens"]
    assert row.notes[0] == "the tokens that `predict` chooses: 5 of 32"
    shown, whole = (
        by_token(torch.from_numpy(one.panels_TYX3).permute(3, 0, 1, 2))
        for one in (row, found["input"])
    )
    for token in range(32):
        if token in masked.plan.predict_BM[0].tolist():
            assert torch.equal(shown[token], whole[token])
        else:
            assert set(shown[token].unique().tolist()) == {40, 64}
    assert "decoder-selected tokens" not in rows(made, look(viewer(RANDOM)))
