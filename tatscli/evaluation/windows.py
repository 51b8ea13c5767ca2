"""Running a network over the windows of many videos, in batches shared by videos.

Shapes: B batch, V views of a window, C channels, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tatscli.data.ahead import read_ahead
from tatscli.data.footage import Footage
from tatscli.data.normalize import standardized
from tatscli.data.windows import Span, Window, Windows
from tatscli.engine.device import autocast
from tatscli.errors import DataError
from tatscli.recipe.schema import Data


class Seen(NamedTuple):
    """The output for a window, or the end of a video.

    Attributes:
        video: Number of the video.
        span: Time and frames of the window; None at the end of the video.
        output: The network's output for its views, (V, ...) float32 on the CPU; None at the end.
        error: At the end, the error if the video could not be read completely.
    """

    video: int
    span: Span | None = None
    output: Tensor | None = None
    error: DataError | None = None


def show_progress(bar: tqdm, videos: Sequence[Footage], seen: Seen) -> None:
    """Move a bar that counts videos, also within a video, which may be an hour long."""
    share = 1.0
    if seen.span is not None:
        seconds = videos[seen.video].seconds
        share = min(seen.span.end / seconds, 1.0) if seconds else 0.0
    bar.update(round(seen.video + share, 2) - bar.n)


class Runner(NamedTuple):
    """Runs a network over windows.

    Attributes:
        network: Maps standardised video (B, C, T, H, W) to one output each.
        data: Gives the normalisation.
        device: Device of the network.
        dtype: Autocast precision.
        batch: Maximum views per forward pass.
        threads: Videos that are read in parallel; 0 reads in this thread.
    """

    network: Callable[[Tensor], Tensor]
    data: Data
    device: torch.device
    dtype: torch.dtype
    batch: int
    threads: int = 0

    def run(
        self, videos: Sequence[Footage], windows: Windows, *, first: int = 0, skip: int = 0
    ) -> Iterator[list[Seen]]:
        """Run over all windows of videos, one after the other.

        Which windows share a batch depends only on the starting point, so that a run that resumes
        after a batch computes the same numbers. A video that cannot be read ends with its error,
        and the next one follows.

        Args:
            videos: The videos.
            windows: How they are cut.
            first: Number of the first video.
            skip: Windows of that video to skip.

        Yields:
            The outputs of every batch: windows in order, with the ends of videos between them.
        """
        together = max(1, self.batch // windows.crops)
        waiting: list[tuple[int, Window | None, DataError | None]] = []
        held = 0
        streams = read_ahead(videos[first:], windows.of, threads=self.threads)
        for video, stream in enumerate(streams, start=first):
            error: DataError | None = None
            passed = skip if video == first else 0
            try:
                for number, window in enumerate(stream):
                    if number < passed:
                        continue
                    waiting.append((video, window, None))
                    held += 1
                    if held == together:
                        yield self._see(waiting)
                        waiting, held = [], 0
            except DataError as problem:
                error = problem
            waiting.append((video, None, error))
        if waiting:
            yield self._see(waiting)

    def see(self, views_BCTHW: Tensor) -> Tensor:
        """Run the network over uint8 views, without gradient: float32, where the network is."""
        pixels_BCTHW = views_BCTHW.to(self.device, non_blocking=True)
        video_BCTHW = standardized(pixels_BCTHW, self.data.mean, self.data.std)
        with torch.inference_mode(), autocast(self.device, self.dtype):
            return self.network(video_BCTHW).float()

    def _see(self, waiting: Sequence[tuple[int, Window | None, DataError | None]]) -> list[Seen]:
        views = [window.views_VCTHW for _, window, _ in waiting if window is not None]
        parts = iter(())
        if views:
            output = self.see(torch.cat(views)).cpu()
            parts = iter(output.split([len(one) for one in views]))
        return [
            Seen(video, error=error) if window is None else Seen(video, window.span, next(parts))
            for video, window, error in waiting
        ]
