"""From the network's outputs for windows to the rows of a feature file.

Shapes: B batch, V views of a window, N tokens, D width, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from tatscli.api import VideoModel, about_video
from tatscli.console import Reporter
from tatscli.data.footage import Footage
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.windows import Seen
from tatscli.store.features import Rows, State

Per = Literal["clip", "window", "token"]
Precision = Literal["float32", "float16"]


class Embedding:
    """Turns batches of outputs into rows.

    Args:
        model: The network.
        videos: All videos.
        per: What a row is.
        layer: Blocks to run.
        precision: Precision of the numbers on disk.
        skip_bad: Whether videos that cannot be read are skipped.
        reporter: Warns of those.
        state: Where to resume.
        carry: Sum of the features of the unfinished video.

    Attributes:
        state: The position after the last complete batch; `carry` belongs to it.
    """

    def __init__(
        self,
        model: VideoModel,
        videos: Sequence[Footage],
        *,
        per: Per,
        layer: int | None,
        precision: Precision,
        skip_bad: bool,
        reporter: Reporter,
        state: State,
        carry: np.ndarray | None,
    ) -> None:
        self.model = model
        self.videos = videos
        self.per = per
        self.layer = layer
        self.dtype = np.dtype(precision)
        self.skip_bad = skip_bad
        self.reporter = reporter
        self.state = state
        self.carry = carry
        encoder = model.encoder
        tokens = (encoder.tokens,) if per == "token" else ()
        self.shape = (*tokens, encoder.width)

    def network(self, video_BCTHW: Tensor) -> Tensor:
        """Return the features of every view: all tokens, or their mean."""
        tokens_BND = self.model.features(video_BCTHW, self.layer)
        return tokens_BND if self.per == "token" else tokens_BND.mean(dim=1)

    def take(self, batch: Sequence[Seen]) -> Rows:
        """Add a batch and return the rows that it completes.

        Raises:
            DataError: If a video cannot be read and `skip_bad` is off.
            CheckpointError: If features are not finite.
            UsageError: If they are too large for the precision.
        """
        video, window, skipped = self.state.video, self.state.window, [*self.state.skipped]
        views, start, end = self.state.views, self.state.start, self.state.end
        carry = self.carry
        rows: list[tuple[np.ndarray, int, float, float]] = []
        for seen in batch:
            if seen.span is not None and seen.output is not None:
                window += 1
                value = self._checked(seen, seen.output[0])
                if self.per != "clip":
                    rows.append((self._cast(value, seen), seen.video, *seen.span[:2]))
                    continue
                added = value.astype(np.float64)
                carry, views = added if carry is None else carry + added, views + 1
                start, end = (seen.span.start if views == 1 else start), seen.span.end
                continue
            if seen.error is not None:
                skipped.append((seen.video, self._give_up(seen.video, seen.error)))
            elif carry is not None:
                mean = (carry / views).astype(np.float32)
                rows.append((self._cast(mean, seen), seen.video, start, end))
            self._warn(seen)
            video, window, views, carry = seen.video + 1, 0, 0, None
        self.state = State(video, window, skipped, views, start, end)
        self.carry = carry
        features = np.empty((len(rows), *self.shape), self.dtype)
        for place, row in enumerate(rows):
            features[place] = row[0]
        return Rows(
            features,
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64),
            np.array([row[3] for row in rows], np.float64),
        )

    def _checked(self, seen: Seen, value: Tensor) -> np.ndarray:
        if not value.isfinite().all():
            raise CheckpointError(
                f"the features of `{self.videos[seen.video].name}` are not finite",
                hint="take an earlier checkpoint of the run, or another layer",
            )
        return value.numpy()

    def _cast(self, value: np.ndarray, seen: Seen) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = value.astype(self.dtype)
        if not np.isfinite(cast).all():
            raise UsageError(
                f"features of `{self.videos[seen.video].name}` as large as "
                f"{np.abs(value).max():.3g} do not fit into {self.dtype}",
                hint="use `--precision float32`",
            )
        return cast

    def _give_up(self, number: int, error: DataError) -> str:
        """Return the reason why a video is skipped.

        Raises:
            DataError: If videos may not be skipped.
        """
        if not self.skip_bad:
            problem = about_video(self.videos[number], error)
            problem.hint = "`--skip-bad` skips such videos" + (
                f"; {error.hint}" if error.hint else ""
            )
            raise problem from error
        self.reporter.warn(f"`{self.videos[number].name}` is skipped: {error.message}")
        return error.message

    def _warn(self, seen: Seen) -> None:
        footage = self.videos[seen.video]
        if seen.error is None and footage.problem is not None:
            self.reporter.warn(f"`{footage.name}`: {footage.problem}")
