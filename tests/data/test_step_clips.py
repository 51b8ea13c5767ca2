"""What is written down of a bad step's clips is what the loader gave the step."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from tatscli.data.dataset import Clips, PretrainClips
from tatscli.data.labelled import FinetuneClips
from tatscli.data.loader import training_batches
from tatscli.data.step_clips import clips_of_step
from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.data.view import View
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Augment, Data, Finetune, Optim, Sampling
from tests.data.fake_store import FakeStore

STORE = FakeStore([30, 40, 50, 60, 35, 45], broken=[3])
DATA = Data(store="x", frames=4, size=32, sampling=Sampling(stride=2), repeats=2, flip=0.5)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_names_frames_and_crops_are_those_of_the_batch(kind: str) -> None:
    rows = range(6)
    clips: Clips
    if kind == "pretrain":
        clips = PretrainClips(STORE, rows, DATA, patch=8, seed=5)
    else:
        tuned = Finetune(augment=Augment(erasing=0.0, rand_augment=0), repeats=2)
        clips = FinetuneClips(STORE, rows, DATA, tuned, seed=5)
    optim = Optim(epochs=3, total_batch=4, batch_per_device=1, base_lr=1e-3, warmup_epochs=0)
    schedule = derive_schedule(optim, videos=6, repeats=2, world=2)
    broken = 0
    for step, rank in ((0, 0), (1, 1), (2, 0)):
        order = training_batches(clips, schedule, seed=5, start_step=step, rank=rank, world=2)
        batches = list(islice(order, schedule.accumulation))
        read = [row for batch in batches for row in batch.row_B.tolist()]
        broken += sum(batch.replaced for batch in batches)
        told = clips_of_step(clips, schedule, read, seed=5, step=step, rank=rank)
        assert [one["row"] for one in told] == read
        assert [one["view"] for one in told] == [0, 1] * schedule.accumulation
        for one, video_CTHW in zip(
            told, (video for batch in batches for video in batch.video_BCTHW), strict=True
        ):
            assert one["id"] == f"videos/{one['row']}.mp4"
            crop = (one["crop"][key] for key in ("top", "left", "height", "width"))
            view = View(48, 64, *crop, (32, 32), one["flip"])
            whole = decode_jpegs(STORE.jpegs(one["row"], one["frames"]))
            assert torch.equal(view.frames(whole).transpose(0, 1), video_CTHW)
    assert broken


def test_pictures_of_unknown_size_have_no_crop() -> None:
    store = FakeStore([30, 40])
    for record in store.rows:
        record.width = record.height = 0
    clips = PretrainClips(store, [0, 1], DATA, patch=8, seed=5)
    optim = Optim(epochs=1, total_batch=2, batch_per_device=2, base_lr=1e-3, warmup_epochs=0)
    schedule = derive_schedule(optim, videos=2, repeats=2, world=1)
    told = clips_of_step(clips, schedule, [0, 0, 1, 1], seed=5, step=0, rank=0)
    assert [one["crop"] for one in told] == [None] * 4
    assert all(len(one["frames"]) == 4 for one in told)
