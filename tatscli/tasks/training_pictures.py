"""Pictures that a training writes to its run and sends to trackers: one video, every few epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tatscli.data.dataset import Sample
from tatscli.data.motion_source import MotionSource
from tatscli.data.views import EvalViews
from tatscli.draws import Draws
from tatscli.engine.device import autocast
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.recipe.schema import Recipe
from tatscli.seeding import seed_of
from tatscli.store.reader import Store
from tatscli.system.system import System
from tatscli.tokenizer.base import TrainedTokenizer
from tatscli.video.encode import write_video
from tatscli.visualize.codes import Coder, coding_rows
from tatscli.visualize.compose import compose
from tatscli.visualize.panels import Row
from tatscli.visualize.render import (
    caption,
    caption_of,
    mask_title,
    rows_seen,
    slices_shown,
    slices_words,
)
from tatscli.visualize.text import Picture
from tatscli.visualize.viewer import Viewer
from tatscli.visualize.windows import stored_window

_MOST = 20  # pictures of a tokenizer's training
_COLUMNS = 8


class TrainingPictures:
    """Draws the result of a training on one fixed video: its middle window and crop.

    A picture uses no random numbers of the training and does not change the model, so a
    training with pictures equals one without, bit for bit.

    Args:
        folder: Where they are written, `pass-0003.png` after the third pass.
        store: The data.
        rows: Rows of the store; the first is drawn.
        recipe: The recipe.
        every: Passes between two pictures.
        motion: Gives the video its motion; None if it is not used.
    """

    name: ClassVar[str]

    def __init__(
        self,
        folder: Path,
        store: Store,
        rows: Sequence[int],
        recipe: Recipe,
        *,
        every: int,
        motion: MotionSource | None = None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.every = every
        self.passes = recipe.optim.epochs
        # Its frames are read once and kept session.
        data = recipe.data.model_copy(update={"cache": "none", "repeats": 1})
        self._views = EvalViews(
            store,
            rows[:1],
            data,
            sampling=data.sampling,
            motion=motion,
            patch=recipe.model.patch,
        )
        self._seen: tuple[list[int], Sample] | None = None

    def due(self, epoch: int) -> bool:
        """Whether to draw after an epoch: every `every`, and the last."""
        return epoch % self.every == 0 or epoch == self.passes

    def _sample(self, session: Session) -> tuple[list[int], Sample] | None:
        """Return the frames and the view, read once; if they cannot be read, say so instead."""
        if self._seen is None:
            try:
                (sample,) = self._views[0]
                self._seen = self._views.frames(sample.row, 0), sample
            except DataError as error:
                session.reporter.warn(f"no pictures of this training: {error.message}", once=True)
        return self._seen

    def _written(
        self, epoch: int, about: str, words: list[str], captions: list[str], rows: list[Row],
        places: list[int],
    ) -> dict[str, Picture]:  # fmt: skip
        """Compose and write the picture of a pass."""
        video = self._views.name(self._views.rows[0])
        title = [video, about, f"after pass {epoch} of {self.passes}", *words]
        page = compose(title, captions, rows, places)
        write_video(self.folder / f"pass-{epoch:04d}.png", [page], fps=1)
        return {self.name: page}


class TokenizerPictures(TrainingPictures):
    """Draws what a tokenizer makes of the first video trained on, about twenty times.

    Arguments are those of `TrainingPictures`; the recipe has a `tokenizer`.
    """

    name = "pictures/tokenizer"

    def __init__(self, folder: Path, store: Store, rows: Sequence[int], recipe: Recipe) -> None:
        super().__init__(folder, store, rows, recipe, every=-(-recipe.optim.epochs // _MOST))

    def draw(self, tokenizer: TrainedTokenizer, epoch: int, session: Session) -> dict[str, Picture]:
        """Write and return the picture of a pass; nothing if the video cannot be read."""
        seen = self._sample(session)
        if seen is None:
            return {}
        frames, video_TCHW = seen[0], seen[1].video_CTHW.transpose(0, 1)
        times = self._views.store.times(seen[1].row)
        if tokenizer.window is None:  # no more are coded than have a column
            some = slices_shown(len(frames), _COLUMNS)
            frames, video_TCHW = [frames[one] for one in some], video_TCHW[some]
        was = tokenizer.training
        tokenizer.eval()
        with autocast(session.device, session.dtype):
            coding = Coder(tokenizer).look(video_TCHW)
        tokenizer.train(was)
        slices = len(frames) // tokenizer.frames
        places = [one * tokenizer.frames for one in slices_shown(slices, _COLUMNS)]
        about = f"{tokenizer.config.kind} tokenizer, {tokenizer.codebook_size} codes"
        captions = [caption(frames[place], times[frames[place]]) for place in places]
        rows = coding_rows(video_TCHW, coding, tokenizer.codebook_size)
        words = slices_words(slices, _COLUMNS)
        return self._written(epoch, about, words, captions, rows, places)


class MaskPictures(TrainingPictures):
    """Draws what a masked autoencoder makes of a video: mask, reconstruction, error, motion.

    Arguments are those of `TrainingPictures`. The mask is drawn from the seed, the same each time.
    """

    name = "pictures/masks"

    def draw(self, system: System, epoch: int, session: Session) -> dict[str, Picture]:
        """Write and return the picture of a pass, the system being in training mode afterwards;
        nothing if the video cannot be read."""
        seen = self._sample(session)
        if seen is None:
            return {}
        frames, sample = seen
        window = stored_window(self._views.store, sample, frames)
        viewer, form = Viewer(system, trained=True), system.form
        places = [one * form.tubelet for one in slices_shown(form.grid[0], _COLUMNS)]
        draws = Draws(seed_of("pictures", self.recipe.run.seed))
        system.eval()
        with autocast(session.device, session.dtype):
            masked = viewer.mask(window, draws)
        system.train()
        rows = rows_seen(viewer, window, masked, places)
        about = mask_title(self.recipe.mask)
        captions = [caption_of(window, place) for place in places]
        words = slices_words(form.grid[0], _COLUMNS)
        return self._written(epoch, about, words, captions, rows, places)
