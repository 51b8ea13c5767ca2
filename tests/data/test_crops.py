"""Views finished on the device: what the host would have made of them, decoded once for all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tatscli.data import files, finishing
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.data.files import Decode
from tatscli.data.labelled import FinetuneClips
from tatscli.data.loader import training_batches
from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.errors import DataError, RecipeError, TatsError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Augment, Data, Finetune, Motion, Optim, Sampling
from tests.data.noisy import Noisy

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
STORE = Noisy([12] * 6)


def data(**change: Any) -> Data:
    """Clips of four frames, from a sixth video on with its last one twice; two views of each."""
    values = {"frames": 4, "size": 32, "sampling": Sampling(stride=4), "flip": 0.5, "repeats": 2}
    return Data(store="x", **(values | {"resize_on": "host"} | change))


def pretraining(**change: Any) -> PretrainClips:
    return PretrainClips(STORE, range(6), data(**change), patch=8, seed=0)


def batches(clips: Any, count: int = 3, **options: Any) -> list[Batch]:
    optim = Optim(total_batch=4, batch_per_device=4, epochs=9, warmup_epochs=0)
    plan = derive_schedule(optim, videos=6, repeats=2, world=1)
    return list(islice(training_batches(clips, plan, seed=0, **options), count))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop": "centre", "size": [24, 40]},
        {"crop_scales": [1.0], "size": 48},  # crops that are resized nowhere
        {"size": 8},  # crops that are too large to be sent
        {"size": 16, "crop_scales": [1, 0.66, 0.5]},  # and some that are not
    ],
)
def test_the_device_makes_of_crops_what_the_host_makes(
    change: dict[str, Any], workers: int
) -> None:
    host = pretraining(**change)
    clips = pretraining(**change, resize_on="device")
    assert clips.finish_on(CPU).resize
    left = 0
    for there, here in zip(batches(clips, workers=workers), batches(host), strict=True):
        left += there.crops is not None
        done = there.to(CPU)
        assert done.crops is None
        assert done.video_BCTHW.shape == here.video_BCTHW.shape
        assert done.video_BCTHW.is_contiguous()
        apart = (done.video_BCTHW.int() - here.video_BCTHW.int()).abs()
        assert apart.max() <= 1
        assert apart.float().mean() < 0.25  # the host rounds twice
        assert torch.equal(done.row_B, here.row_B)
        assert done.motion is not None and here.motion is not None
        assert torch.equal(done.motion.field_BThw2, here.motion.field_BThw2)
    assert left == (0 if change.get("size") == 8 else 3)


@pytest.mark.parametrize("resize", ["antialias", "videomae"])
def test_so_with_views_of_fine_tuning(resize: str) -> None:
    plain = Augment(rand_augment=0, erasing=0.0, flip=0.5)
    whole = Augment(rand_augment=7, rand_augment_form="videomae", erasing=0.0)
    for augment in (plain, whole):
        settings = Finetune(repeats=2, augment=augment)
        made = {}
        for where in ("host", "device"):
            recipe = data(resize_on=where, resize=resize)
            made[where] = FinetuneClips(STORE, range(6), recipe, settings, seed=0)
            assert made[where].finish_on(CPU).resize == (where == "device")
        for there, here in zip(batches(made["device"]), batches(made["host"]), strict=True):
            assert there.crops is not None
            apart = there.to(CPU).video_BCTHW.int() - here.video_BCTHW.int()
            assert apart.abs().max() <= 1


def test_what_follows_the_crop_stays_with_the_loader_and_says_so() -> None:
    def plan(clips: Any, device: torch.device = GPU) -> finishing.Finishing:
        return clips.finish_on(device)

    def finetuning(**change: Any) -> FinetuneClips:
        settings = Finetune(augment=Augment(**change))
        return FinetuneClips(STORE, range(6), data(resize_on="auto"), settings, seed=0)

    assert plan(pretraining(resize_on="auto")).resize
    assert not plan(pretraining(resize_on="auto"), CPU).resize
    assert not plan(pretraining(resize_on="host")).resize
    found = plan(finetuning(erasing=0.25, rand_augment=0))
    assert (found.resize, found.refused) == (False, False)
    assert "random erasing follows the crop" in found.reason
    assert "RandAugment follows the crop" in plan(finetuning(rand_augment=7)).reason
    for motion in ({"source": "framediff"}, {"fallback": "framediff"}):
        found = plan(pretraining(resize_on="device", motion=Motion(**motion)))
        assert (found.resize, found.refused) == (False, True)
        assert "`data.resize_on: device` has no effect" in found.reason
        assert "frame differences" in found.reason


def test_a_clip_is_decoded_once_for_all_its_views() -> None:
    store = Noisy([12] * 6)
    clips = PretrainClips(store, range(6), data(repeats=3, cache="none"), patch=8, seed=0)
    for change in ({}, {"decode": "gpu"}):
        clips.finishing = finishing.Finishing(decode=bool(change))
        store.read.clear()
        samples = clips[0, 2]
        assert [sample.view for sample in samples] == [0, 1, 2]
        assert sorted(store.read.values()) == [1, 1, 1]  # four frames, the last of them twice
    plan = derive_schedule(
        Optim(total_batch=2, batch_per_device=2, epochs=5, warmup_epochs=0),
        videos=6,
        repeats=3,
        world=1,
    )
    assert (plan.steps_per_epoch, plan.passes) == (3, 15)  # views of a video, not readings


# --- decoding on the GPU, with a decoder of the same signature that works on the host ---


def on_host(calls: list[int]) -> Callable[[], Decode]:
    """Stand for `gpu_decoder`: planar pictures, as nvJPEG writes them."""

    def decode(content: list[Tensor], device: torch.device) -> list[Tensor]:
        calls.append(len(content))
        return [decode_jpegs([one.numpy().copy()])[0].contiguous() for one in content]

    return lambda: decode


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_decoded_in_one_call_and_reach_the_batch_right(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(files, "gpu_decoder", on_host(calls))
    clips = pretraining(decode="gpu")
    clips.finishing = finishing.Finishing(decode=True)
    assert clips.cache is None
    for there, here in zip(batches(clips, workers=workers), batches(pretraining()), strict=True):
        assert there.files is not None and there.video_BCTHW.numel() == 0
        done = there.to(CPU)
        assert done.files is None
        assert (done.video_BCTHW.int() - here.video_BCTHW.int()).abs().max() <= 1
        assert torch.equal(done.view_B, here.view_B)
        assert done.motion is not None and here.motion is not None
        assert torch.equal(done.motion.speed_BThw, here.motion.speed_BThw)
    assert calls == [4 * 3] * 3  # four clips of three different frames, whatever their views


def test_a_file_that_the_gpu_cannot_decode_names_its_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "gpu_decoder", on_host([]))
    clips = PretrainClips(
        Noisy([12] * 6, broken=[4]), range(6), data(decode="gpu"), patch=8, seed=0
    )
    clips.finishing = finishing.Finishing(decode=True)
    with pytest.raises(DataError, match=r"`videos/4\.mp4` cannot be decoded on the GPU") as caught:
        [batch.to(CPU) for batch in batches(clips)]
    assert "data.decode=cpu" in (caught.value.hint or "")


def test_decoding_on_the_gpu_needs_one_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = pretraining(decode="gpu")
    with pytest.raises(RecipeError, match="needs a CUDA device, and this training runs on `cpu`"):
        clips.finish_on(CPU)
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    with pytest.raises(TatsError, match="cannot use the package `torchcodec`") as caught:
        clips.finish_on(GPU)
    assert "tats[gpu-decode]" in (caught.value.hint or "")
    monkeypatch.setattr(finishing, "gpu_decoder", on_host([]))
    assert clips.finish_on(GPU).decode
    moving = pretraining(decode="gpu", motion=Motion(source="framediff"))
    found = moving.finish_on(GPU)
    assert (found.decode, found.refused) == (False, True)
    with pytest.raises(ValueError, match="`cache: ram` would have no effect"):
        data(decode="gpu", cache="ram")


def test_torchcodec_is_called_as_its_release_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, on the host, which has the same interface as the GPU."""
    pytest.importorskip("torchcodec.decoders")
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    from tests.data.fake_store import jpeg

    (found,) = files.gpu_decoder()([torch.from_numpy(jpeg(picture))], CPU)
    assert torch.equal(found, decode_jpegs([jpeg(picture)])[0])


@pytest.mark.needs_cuda
def test_a_gpu_makes_the_same_of_crops_and_files() -> None:
    host = batches(pretraining())
    for change in ({"resize_on": "device"}, {"decode": "gpu"}):
        if "decode" in change:
            pytest.importorskip("torchcodec.decoders")
        clips = pretraining(**change)
        clips.finish_on(GPU)
        for there, here in zip(batches(clips), host, strict=True):
            video_BCTHW = there.to(GPU).video_BCTHW.cpu()
            most = 1 if "resize_on" in change else 4  # nvJPEG's cosine transform is another
            assert (video_BCTHW.int() - here.video_BCTHW.int()).abs().max() <= most
