"""Do masks hide what changes? Overlap of hidden tokens with frame differences, on given videos.

    python tests/studies/overlap.py OUT VIDEO...

Each video is prepared by itself; clips of 16 frames at stride 4 (224 x 224, 8 x 14 x 14 tokens) are
drawn as pretraining draws them. The energy of a token is the mean absolute difference of its frames
to those before, in grey levels, computed here from the pixels. Printed is the mean energy of hidden
tokens by that of all tokens: 1 is chance, 1 / ratio the most possible. In brackets, the share of
what changes most, the top tenth of the clip's tokens, that is hidden: chance is the ratio.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from tatscli.data.batch import collate
from tatscli.data.clip import ClipForm
from tatscli.data.dataset import PretrainClips
from tatscli.draws import Draws
from tatscli.masking import build_masker
from tatscli.masking.insight import top_share
from tatscli.recipe.schema import Data, Mask, Motion, Sampling
from tatscli.store.reader import Store

GRID = (8, 14, 14)
CLIPS, RATIO = 64, 0.75
MASKS = ("random", "tube", "block", "simulated", "mgm", "mgm_topk", "mgm_advect")


def energy_BN(video_BCTHW: Tensor) -> Tensor:
    """Return the mean absolute frame difference of every token."""
    B, _, T, H, W = video_BCTHW.shape
    change_BTHW = video_BCTHW.float().diff(dim=2).abs().mean(dim=1)
    change_BTHW = torch.cat([change_BTHW[:, :1], change_BTHW], dim=1)
    t, h, w = GRID
    cubes = change_BTHW.reshape(B, t, T // t, h, H // h, w, W // w)
    return cubes.mean(dim=(2, 4, 6)).reshape(B, -1)


def section(kind: str) -> Mask:
    """Build the recipe section of a mask at the common ratio."""
    from pydantic import TypeAdapter

    return TypeAdapter(Mask).validate_python({"kind": kind, "ratio": RATIO})


def row(store: Path, camera: str, kind: str) -> str:
    """Measure one mask on one video."""
    data = Data(
        store=str(store),
        sampling=Sampling(stride=4),
        motion=Motion.model_validate({"camera": camera}),
        crop_scales=[1],
    )
    opened = Store.open(store)
    clips = PretrainClips(opened, opened.part(None), data, patch=16, seed=0)
    masker = build_masker(section(kind), grid=GRID, width=8)
    form = ClipForm(GRID, tubelet=2, patch=16)
    draws = Draws(0)
    lift, covered = [], []
    for first in range(0, CLIPS, 16):
        batch = collate([clips[epoch, 0][0] for epoch in range(first, first + 16)])
        plan = masker.plan(form.clip(batch.video_BCTHW, motion=batch.motion), draws)
        hidden_BN = plan.hidden_BN(masker.tokens).float()
        energy = energy_BN(batch.video_BCTHW)
        lift.append((energy * hidden_BN).sum(1) / hidden_BN.sum(1) / energy.mean(1))
        top = top_share(energy, 0.1)
        covered.append((top * hidden_BN).sum(1) / top.sum(1))
    return f"{torch.cat(lift).mean():.2f} ({torch.cat(covered).mean():.2f})"


def main() -> None:
    """Print one line a mask, one column a video."""
    out, videos = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    for video in videos:
        store, alone = out / video.stem, out / f"{video.stem}-video"
        if not store.exists():
            alone.mkdir(parents=True)
            (alone / video.name).symlink_to(video.resolve())
            command = [sys.executable, "-m", "tatscli", "prepare", alone, "--out", store, "--quiet"]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    print("| mask | " + " | ".join(f"`{video.name}`" for video in videos) + " |")
    print("|---" * (len(videos) + 1) + "|")
    for kind in MASKS:
        cells = [row(out / video.stem, "none", kind) for video in videos]
        print(f"| `{kind}` | " + " | ".join(cells) + " |", flush=True)
    for kind in ("mgm", "mgm_topk"):
        cells = [row(out / video.stem, "affine", kind) for video in videos]
        print(f"| `{kind}`, `camera: affine` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
