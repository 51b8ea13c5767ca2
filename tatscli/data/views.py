"""The fixed views of videos that are scored; an item is one view.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor

from tatscli.data.dataset import Clips, Sample
from tatscli.data.motion_source import MotionSource
from tatscli.data.sampling import eval_indices
from tatscli.data.tracks import Track
from tatscli.data.view import View, spatial_crop
from tatscli.errors import DataError
from tatscli.recipe.schema import Data, Sampling
from tatscli.store.reader import Store


class EvalViews(Clips):
    """The fixed views that score a video: `segments` clips along time, `crops` crops of each.

    Item `i` is view `i % views` of the `i // views`-th row; view `v` is crop `v % crops` of segment
    `v // crops`.

    Args:
        store: Where the videos are.
        rows: Rows of the store to score.
        data: The recipe's `data`.
        sampling: How frames are drawn.
        segments: Clips along time.
        crops: Crops with the aspect of the view, along the side that has room.
        motion: Gives views their motion; None where nobody reads it.
        patch: Height and width of a token in pixels, for the motion.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        data: Data,
        *,
        sampling: Sampling,
        segments: int = 1,
        crops: int = 1,
        motion: MotionSource | None = None,
        patch: int = 16,
    ) -> None:
        super().__init__(store, rows, data, motion=motion, patch=patch)
        self.sampling = sampling
        self.segments = segments
        self.crops = crops
        self._last: tuple[tuple[int, int], list[int], Tensor, Track | None] | None = None

    @property
    def views(self) -> int:
        """Views of each video."""
        return self.segments * self.crops

    def __len__(self) -> int:
        return len(self.rows) * self.views

    def row(self, item: int) -> int:
        """Return the row of the store that an item is of."""
        return self.rows[item // self.views]

    def __getitem__(self, item: int) -> list[Sample]:
        position, number = divmod(item, self.views)
        segment, crop = divmod(number, self.crops)
        row = self.rows[position]
        frames, video_TCHW, track = self._segment(row, segment)
        height, width = video_TCHW.shape[-2:]
        view = spatial_crop(
            height,
            width,
            self.data.view_size,
            crop=crop,
            crops=self.crops,
            antialias=self.data.antialias_labelled,
        )
        return [self.sample(view, video_TCHW, track, frames, row, number)]

    def sample(
        self,
        view: View,
        video_TCHW: Tensor,
        track: Track | None,
        frames: list[int],
        row: int,
        number: int,
    ) -> Sample:
        """Look at a clip through a view, the `number`-th of its video."""
        clip_TCHW = view.frames(video_TCHW)
        motion = self.seen(view, clip_TCHW, track, frames, row)
        return Sample(clip_TCHW.transpose(0, 1), self.label(row), row, number, motion)

    def items(self, *, rank: int = 0, world: int = 1, distinct: bool = False) -> list[int]:
        """Return the items of every `world`-th video, all its views or those that differ."""
        return [
            position * self.views + number
            for position in range(rank, len(self.rows), world)
            for number in (
                sorted(set(self.alike(self.rows[position]))) if distinct else range(self.views)
            )
        ]

    def alike(self, row: int) -> list[int]:
        """Return for each view of a row's video the first view that shows the very same.

        Crops fall together on pictures of the aspect of the view, segments in videos that are no
        longer than a clip. Told by the manifest: segments by the clock (`sampling.fps`) count as
        different, and so does all of a video that the recipe refuses.
        """
        record, first = self.store.rows[row], dict[object, int]()
        places: list[object] = list(range(self.crops))
        if record.width and record.height:
            places = [
                spatial_crop(
                    record.height, record.width, self.data.view_size, crop=crop, crops=self.crops
                )
                for crop in range(self.crops)
            ]
        times: list[object] = list(range(self.segments))
        if self.sampling.fps is None:
            with suppress(DataError):  # whoever reads it says so
                times = [tuple(self.frames(row, segment)) for segment in range(self.segments)]
        shown = [(when, where) for when in times for where in places]
        return [first.setdefault(one, number) for number, one in enumerate(shown)]

    def frames(self, row: int, segment: int) -> list[int]:
        """Return the frames of a segment of a row's video."""
        return self.indices(
            row,
            self.sampling,
            lambda n: eval_indices(n, self.sampling, self.data.frames, self.segments)[segment],
        )

    def _segment(self, row: int, segment: int) -> tuple[list[int], Tensor, Track | None]:
        """Read a segment, or return the last one: its crops are asked for one after the other."""
        if self._last is None or self._last[0] != (row, segment):
            frames = self.frames(row, segment)
            self._last = (row, segment), frames, self.pictures(row, frames), self.track(row, frames)
        return self._last[1:]
