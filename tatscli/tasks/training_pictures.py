"""Pictures that the training of a tokenizer leaves in its run: one video, every few passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tatscli.data.views import EvalViews
from tatscli.engine.device import autocast
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.tokenizer.base import TrainedTokenizer
from tatscli.video.encode import write_video
from tatscli.visualize.codes import Coder, coding_rows
from tatscli.visualize.compose import compose
from tatscli.visualize.render import slices_shown, slices_words

_MOST = 20  # pictures of a training
_COLUMNS = 8


class TrainingPictures:
    """Draws what a tokenizer makes of the first video trained on: the middle window and crop.

    A picture takes no random numbers and leaves the model as it was, so that a training with them
    is bit for bit the one without.

    Args:
        folder: Where they are written, `pass-0003.png` after the third pass.
        store: The data.
        rows: Rows that are trained on.
        recipe: The recipe, with a `tokenizer`.
    """

    def __init__(self, folder: Path, store: Store, rows: Sequence[int], recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.passes = recipe.optim.epochs
        # Its frames are read once and kept here.
        data = recipe.data.model_copy(update={"cache": "none", "repeats": 1})
        self._views = EvalViews(store, rows[:1], data, sampling=data.sampling)
        self._seen: tuple[list[int], torch.Tensor] | None = None

    def due(self, epoch: int) -> bool:
        """Whether to draw after a pass: about twenty times in a training, and after the last."""
        return epoch % -(-self.passes // _MOST) == 0 or epoch == self.passes

    def draw(self, tokenizer: TrainedTokenizer, epoch: int, here: Session) -> None:
        """Write the picture of a pass; if the video cannot be read, say so instead."""
        try:
            frames, video_TCHW = self._video(tokenizer)
        except DataError as error:
            here.reporter.warn(f"no pictures of the training: {error.message}", once=True)
            return
        was = tokenizer.training
        tokenizer.eval()
        with autocast(here.device, here.dtype):
            coding = Coder(tokenizer).look(video_TCHW)
        tokenizer.train(was)
        slices = len(frames) // tokenizer.frames
        places = [one * tokenizer.frames for one in slices_shown(slices, _COLUMNS)]
        title = [
            self._views.name(self._views.rows[0]),
            f"{tokenizer.config.kind} tokenizer, {tokenizer.codebook_size} codes",
            f"after pass {epoch} of {self.passes}",
            *slices_words(slices, _COLUMNS),
        ]
        captions = [f"frame {frames[place]}" for place in places]
        rows = coding_rows(video_TCHW, coding, tokenizer.codebook_size)
        page = compose(title, captions, rows, places)
        write_video(self.folder / f"pass-{epoch:04d}.png", [page], fps=1)

    def _video(self, tokenizer: TrainedTokenizer) -> tuple[list[int], torch.Tensor]:
        """Return the frames and their pictures, uint8 (T, C, H, W), read once: no more than are
        shown, unless the tokenizer takes windows.

        Raises:
            DataError: If they cannot be read.
        """
        if self._seen is None:
            (sample,) = self._views[0]
            frames = self._views.frames(sample.row, 0)
            video_TCHW = sample.video_CTHW.transpose(0, 1)
            if tokenizer.window is None:
                some = slices_shown(len(frames), _COLUMNS)
                frames, video_TCHW = [frames[one] for one in some], video_TCHW[some]
            self._seen = frames, video_TCHW
        return self._seen
