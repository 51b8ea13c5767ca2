"""Trained runs in Python: `tatscli.load(PATH)` gives a `VideoModel`.

Shapes: B batch, C channels, T frames, H and W pixels, N tokens, D width, L classes, V views.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tatscli.data.footage import ArrayFootage, FileFootage, Footage
from tatscli.data.normalize import standardized
from tatscli.data.windows import Span, Windows
from tatscli.engine.device import choose_device, choose_precision
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.predictions import Merged, Prediction, best_classes
from tatscli.evaluation.windows import Runner
from tatscli.nn.classifier import Classifier
from tatscli.nn.load import LoadedRun, open_checkpoint
from tatscli.nn.trained import class_names_of, load_network, refuse_no_classifier
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import Recipe, Sampling

Frames = np.ndarray | Tensor | Sequence[object]
"""A video in memory: uint8 RGB (T, H, W, C), or a list of pictures (H, W, C)."""
Source = str | os.PathLike[str] | Frames
"""A video: the path of a file, or frames in memory."""

_FPS = 25.0  # assumed for frames in memory, if not given and only times of results depend on it


def load(
    path: str | os.PathLike[str], *, device: str | torch.device = "auto", checkpoint: str = "last"
) -> VideoModel:
    """Load a trained run, ready to use: in evaluation mode, on a device.

    Args:
        path: A run folder, one of its checkpoints, or weights from another program.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `mps`, or a torch device.
        checkpoint: `last`, or `best`, the best one on `finetune.val_split`.

    Raises:
        CheckpointError: If there is no such checkpoint, or it is a tokenizer's.
        UsageError: If the device is not available.
    """
    if checkpoint not in ("last", "best"):
        raise UsageError(f"`checkpoint={checkpoint!r}` must be `last` or `best`")
    place = _device(device)
    run = open_checkpoint(Path(path), prefer=checkpoint)
    return VideoModel(run, load_network(run)).to(place).eval()


class VideoModel(nn.Module):
    """A trained network together with its sampling, views and normalisation.

    Called with a standardised video, float (B, C, T, H, W), a fine-tuned model returns logits (B,
    L), and a pretrained one token features (B, N, D) after the last norm.

    Args:
        run: Its checkpoint.
        network: The network of `load_network`.

    Attributes:
        run: The checkpoint, and the recipe it was trained with.
        network: The classifier or encoder.
    """

    def __init__(self, run: LoadedRun, network: Classifier | Encoder) -> None:
        super().__init__()
        self.run = run
        self.network = network

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained with."""
        return self.run.recipe

    @property
    def class_names(self) -> list[str]:
        """Class names, in the order of the logits; empty for a pretrained run."""
        return class_names_of(self.run)

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        return self.network if isinstance(self.network, Encoder) else self.network.encoder

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return logits (B, L), or for a pretrained run token features (B, N, D)."""
        if isinstance(self.network, Encoder):
            return self.features(video_BCTHW)
        return self.network(video_BCTHW)

    def features(self, video_BCTHW: Tensor, layer: int | None = None) -> Tensor:
        """Return the features of every token, (B, N, D); tokens are in the order (time, row,
        column).

        Args:
            video_BCTHW: Standardised video.
            layer: Number of blocks to run: 0 returns the patch embeddings with their positions,
                None runs all blocks and the last norm.

        Raises:
            UsageError: If the encoder has fewer blocks.
        """
        encoder = self.encoder
        self.check_layer(layer)
        tokens_BND = encoder.embed(encoder.cubes(video_BCTHW))
        if layer is None:
            return encoder(tokens_BND)
        return encoder.features(tokens_BND, depth=layer)

    def check_layer(self, layer: int | None) -> None:
        """Raise a UsageError if the encoder has no such layer."""
        if layer is not None and not 0 <= layer <= self.encoder.depth:
            raise UsageError(
                f"`layer {layer}` is not among the encoder's {self.encoder.depth} blocks",
                hint=f"allowed are 0 (the patch embeddings) to {self.encoder.depth}; by default "
                "all blocks and the last norm run",
            )

    def preprocess(
        self,
        source: Source,
        *,
        windows: int = 1,
        fps: float | None = None,
        sampled: bool | None = None,
    ) -> Tensor:
        """Make the input of `forward`: decode, sample, resize, centre-crop, standardise.

        Args:
            source: A video.
            windows: Number of windows along time, spread as by `evaluate.segments`; a single one
                lies in the middle of the video.
            fps: Frame rate of frames in memory, needed if the recipe samples at a frame rate.
            sampled: Whether frames in memory are already those of one window. By default they are
                if there are as many as the model sees at once.

        Returns:
            float32 (windows, C, T, H, W), on the model's device.

        Raises:
            DataError: If the video cannot be read.
            UsageError: If the frames are not a video, or `fps` is missing.
        """
        footage, sampling = self._footage(source, fps, sampled)
        cut = self.windows(count=windows, sampling=sampling)
        try:
            views_VCTHW = torch.cat([window.views_VCTHW for window in cut.of(footage)])
        except DataError as error:
            raise about_video(footage, error) from error
        data = self.recipe.data
        return standardized(views_VCTHW.to(self.device), data.mean, data.std)

    def predict(
        self,
        source: Source,
        top: int = 5,
        *,
        windows: int | None = None,
        every: float | None = None,
        crops: int = 1,
        fps: float | None = None,
        sampled: bool | None = None,
    ) -> list[Prediction]:
        """Return the most probable classes of a video, best first, by the mean over its windows.

        Args:
            source: A video of any length; only a few windows of a file are in memory.
            top: Number of classes to return.
            windows: Number of evenly spread windows; by default they cover the video.
            every: Seconds from one window to the next, instead.
            crops: Views of a window: 1 or 3.
            fps: As for `preprocess`.
            sampled: As for `preprocess`.

        Raises:
            CheckpointError: If the run has no classifier, or scores are not finite.
            DataError: If the video cannot be read.
            UsageError: If `windows`, `every` and the recipe's sampling contradict each other.
        """
        footage, sampling = self._footage(source, fps, sampled)
        cut = self.windows(count=windows, every=every, crops=crops, sampling=sampling)
        merged, end = Merged(), 0.0
        for span, score_VL in self._scores(footage, cut):
            merged.add(score_VL)
            end = max(end, span.end)
        return best_classes(merged.score_L, self.class_names, top=top, start=0.0, end=end)

    def predict_windows(
        self,
        source: Source,
        top: int = 5,
        *,
        windows: int | None = None,
        every: float | None = None,
        crops: int = 1,
        fps: float | None = None,
        sampled: bool | None = None,
    ) -> Iterator[list[Prediction]]:
        """Yield the most probable classes of every window, in order; arguments and errors as in
        `predict`."""
        footage, sampling = self._footage(source, fps, sampled)
        cut = self.windows(count=windows, every=every, crops=crops, sampling=sampling)
        names = self.class_names
        for span, score_VL in self._scores(footage, cut):
            score_L = score_VL.mean(dim=0)
            yield best_classes(score_L, names, top=top, start=span.start, end=span.end)

    def windows(
        self,
        *,
        count: int | None = None,
        every: float | None = None,
        crops: int = 1,
        sampling: Sampling | None = None,
    ) -> Windows:
        """Return how videos are cut into windows for this model: by default covering the video,
        sampled as in evaluation."""
        data = self.recipe.data
        if sampling is None:
            sampling = self.recipe.view_sampling
        return Windows(
            data.frames,
            data.view_size,
            sampling,
            crops,
            count,
            every,
            antialias=data.antialias_labelled,
        )

    def runner(self, network: Callable[[Tensor], Tensor], *, threads: int = 0) -> Runner:
        """Return a runner for a part of this model, on its device, in the precision of
        `run.precision`."""
        recipe = self.recipe
        dtype, _ = choose_precision(recipe.run.precision, self.device)
        batch = recipe.evaluate.batch_per_device
        return Runner(network, recipe.data, self.device, dtype, batch, threads)

    def probabilities(self, video_BCTHW: Tensor) -> Tensor:
        """Return class probabilities of a standardised video, (B, L).

        Raises:
            CheckpointError: If the run has no classifier.
        """
        refuse_no_classifier(self.run)
        return self.network(video_BCTHW).float().softmax(dim=-1)

    def _scores(self, footage: Footage, cut: Windows) -> Iterator[tuple[Span, Tensor]]:
        """Yield the probabilities of every window's views."""
        refuse_no_classifier(self.run)
        for batch in self.runner(self.probabilities).run([footage], cut):
            for seen in batch:
                if seen.error is not None:
                    raise about_video(footage, seen.error) from seen.error
                if seen.span is not None and seen.output is not None:
                    refuse_not_finite(seen.output, footage)
                    yield seen.span, seen.output

    def _footage(
        self, source: Source, fps: float | None, sampled: bool | None
    ) -> tuple[Footage, Sampling]:
        """Open a video, and return how it is sampled."""
        sampling = self.recipe.view_sampling
        if isinstance(source, str | os.PathLike):
            return FileFootage(Path(source)), sampling
        footage = ArrayFootage(source, _FPS if fps is None else fps)
        frames, wanted = len(footage.video_TCHW), self.recipe.data.frames
        if sampled if sampled is not None else frames == wanted:
            if frames != wanted:
                raise UsageError(f"with `sampled` there must be {wanted} frames, not {frames}")
            return footage, Sampling(mode="uniform")  # which takes every frame
        if sampling.fps is not None and fps is None:
            raise UsageError(
                f"the recipe samples {sampling.fps:g} frames a second, and the frame rate of these "
                "frames is unknown",
                hint="give it, such as `fps=25`",
            )
        return footage, sampling


def about_video(footage: Footage, error: DataError) -> DataError:
    """Return the error with the name of the video."""
    reason = error.message.removeprefix("cannot be read: ")
    return DataError(f"`{footage.name}` cannot be read: {reason}", error.hint)


def refuse_not_finite(score_VL: Tensor, footage: Footage) -> None:
    """Refuse scores that are not finite: they would still name a class.

    Raises:
        CheckpointError: If one is not.
    """
    if not score_VL.isfinite().all():
        raise CheckpointError(
            f"the scores of `{footage.name}` are not finite",
            hint="take an earlier checkpoint of the run (`RUN/checkpoints/step-...`)",
        )


def _device(device: str | torch.device) -> torch.device:
    """Return a device by name, `auto` included.

    Raises:
        UsageError: If there is none of this name here.
    """
    try:
        if device == "auto":
            return choose_device("auto")[0]
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise UsageError(
            f"the device `{device}` is not available on this machine",
            hint="`tats env` shows the devices; `auto` uses what is available",
        ) from error
    return place
