"""`read_frames`: one decode gives stored pictures and their motion, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
from av.video.frame import VideoFrame

from tatscli.video.camera import Camera, remove_camera
from tatscli.video.crop import WHOLE, Cropper
from tatscli.video.decode import StrPath
from tatscli.video.decoded import Decoded
from tatscli.video.encode import JpegEncoder
from tatscli.video.field import grid_size, rasterise
from tatscli.video.interlace import deinterlaced
from tatscli.video.motion import exported, picture_type
from tatscli.video.orientation import UPRIGHT
from tatscli.video.origin import SEPARATE_FIELDS, Origin, Wanted, final_origin
from tatscli.video.picture import Scaler, stored_size, to_rgb
from tatscli.video.reader import VideoReader
from tatscli.video.reencode import MotionEstimator


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """One frame as a store holds it: upright, scaled, with the motion that leads to it.

    Attributes:
        time: Presentation time in seconds.
        picture: The scaled picture in YUV; None where only motion was asked for.
        motion: (gh, gw, 2) float32, displacement of content in pixels of this picture per frame, x
            first; 0 where unknown.
        valid: Whether there are vectors for this frame; key frames have none.
        width: Of the stored picture.
        height: Of the stored picture.
    """

    time: float
    picture: VideoFrame | None
    motion: np.ndarray
    valid: bool
    width: int
    height: int

    def rgb(self) -> np.ndarray:
        """Return the picture as (H, W, 3) uint8."""
        assert self.picture is not None, "read without pictures"
        return to_rgb(self.picture)

    def jpeg(self, quality: int = 3) -> bytes:
        """Return the picture as a JPEG file; `quality` is FFmpeg's scale, 2 (best) to 31."""
        assert self.picture is not None, "read without pictures"
        return JpegEncoder(quality)(self.picture)


def read_frames(
    path: StrPath,
    *,
    short_side: int | None = 256,
    motion_cell: int = 16,
    motion: Wanted = "auto",
    camera: Camera = "none",
) -> Iterator[StoredFrame]:
    """Decode a file once and yield every frame; leave the loop whenever you like.

    Args:
        path: A file FFmpeg can read.
        short_side: Larger pictures are scaled down to it, smaller ones stay; None keeps the size.
        motion_cell: Side of a cell of the motion field, in pixels of the stored picture.
        motion: Whose vectors: the codec's own, those of an encoding, what suits the file, nobody's.
        camera: Model of global motion that is taken out of the field.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
    """
    reader = VideoReader(path, motion=motion)
    return stored_frames(
        reader, short_side=short_side, motion_cell=motion_cell, camera=camera, pictures=True
    )


def stored_frames(
    reader: VideoReader,
    *,
    short_side: int | None,
    motion_cell: int,
    camera: Camera = "none",
    pictures: bool = True,
    period: float | None = None,
) -> Iterator[StoredFrame]:
    """Yield the frames of a reader as `read_frames` does; the reader keeps what it learns.

    The first frame decides the stored size: frames of another size, should the stream change, are
    scaled to it. From the frame on at which the reader finds the codec's own vectors unusable, they
    are those of an encoding; where the reader's pictures are spoilt, that frame ends the iteration.
    `period` is that of `MotionEstimator`.
    """
    scale: Scaler | None = None
    before: VideoFrame | None = None  # the frame before, while the codec's own vectors are used
    estimate = MotionEstimator(period)
    for item, source in _shown(reader, pictures):
        if scale is None:
            scale = _scaler(reader, short_side)
            size = (scale.width, scale.height)
            still = np.zeros((*grid_size(*size, motion_cell), 2), np.float32)
            still.flags.writeable = False
        origin = reader.origin.kind
        if origin == "reencode" and reader.spoilt:
            return
        picture = scale(source) if pictures or origin == "reencode" else None
        field, valid = still, False
        if origin == "native":
            vectors, coded = exported(item.frame), (item.frame.width, item.frame.height)
            crop, orientation = reader.crop_of(item.frame), reader.orientation
            if not reader.origin.b_frames and picture_type(item.frame) == "B":
                vectors = vectors[:0]
        elif origin == "reencode":
            assert picture is not None
            time = item.time - reader.begin
            if before is not None and picture_type(item.frame) != "I":
                estimate(scale(before), time)
            vectors, coded = estimate(picture, time), size
            crop, orientation = WHOLE, UPRIGHT
        before = source if origin == "native" and not reader.spoilt else None
        if origin != "none" and len(vectors) > 0:
            field, covered = rasterise(
                vectors,
                coded=coded,
                stored=size,
                cell=motion_cell,
                crop=crop,
                orientation=orientation,
                past=item.past if origin == "native" else 1,
                future=item.future if origin == "native" else 1,
            )
            field, valid = remove_camera(field, covered, camera), True
        yield StoredFrame(item.time, picture if pictures else None, field, valid, *size)


def shown_frames(
    reader: VideoReader, *, short_side: int | None
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Yield every frame's presentation time in seconds, and a function that makes its picture.

    The picture is that of `StoredFrame.rgb`. It is converted only when it is asked for: of a video
    that is read at a stride most frames are never looked at.

    Args:
        reader: The file; it keeps what it learns.
        short_side: As for `read_frames`.

    Raises:
        DecodeError: As `read_frames`; from the function, if FFmpeg cannot convert the picture.
    """
    scale: Scaler | None = None
    for item, source in _shown(reader, pictures=True):
        scale = scale or _scaler(reader, short_side)
        yield item.time, partial(_converted, scale, source)


def _converted(scale: Scaler, source: VideoFrame) -> np.ndarray:
    return to_rgb(scale(source))


def _scaler(reader: VideoReader, short_side: int | None) -> Scaler:
    """Return what makes stored pictures, once the reader has seen its first frame."""
    width, height = reader.size
    upright = reader.orientation.size(max(1, round(width * reader.aspect)), height)
    return Scaler(*stored_size(*upright, short_side), reader.orientation)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a whole file has shown beside its frames.

    Attributes:
        reader: Knows the facts of the file.
        origin: Whose vectors the frames got, and why; nobody's where no frame has any.
        times: Presentation time of each frame in seconds.
        valid: Whether there are vectors for it.
        width: Of the stored picture.
        height: Of the stored picture.
    """

    reader: VideoReader
    origin: Origin
    times: list[float]
    valid: list[bool]
    width: int
    height: int


def read_whole(
    make_reader: Callable[[Wanted], VideoReader],
    make_sink: Callable[[], AbstractContextManager[Callable[[StoredFrame], None]]],
    *,
    motion: Wanted,
    short_side: int | None,
    motion_cell: int,
    camera: Camera = "none",
    pictures: bool = True,
) -> Reading:
    """Hand every frame of a file to a sink.

    A file is read again, into a new sink, where `auto` finds no vectors in it, and where it finds
    them unusable after spoiling the pictures. Neither happens to a file whose own vectors are good.

    Args:
        make_reader: Opens the file for a choice of vectors.
        make_sink: Begins to take frames; what an earlier one has taken is of no use any more.
        motion: Whose vectors.
        short_side: As for `read_frames`, like what follows.
        motion_cell: Side of a cell of the motion field.
        camera: Model of global motion.
        pictures: Whether frames come with pictures.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
    """

    def read(wanted: Wanted, *, whole: bool) -> Reading | None:
        reader = make_reader(wanted)
        reader.pictures |= whole
        times: list[float] = []
        valid: list[bool] = []
        size = (0, 0)
        with make_sink() as take:
            for frame in stored_frames(
                reader,
                short_side=short_side,
                motion_cell=motion_cell,
                camera=camera,
                pictures=pictures,
            ):
                take(frame)
                times.append(frame.time)
                valid.append(frame.valid)
                size = (frame.width, frame.height)
        if reader.spoilt and reader.origin.kind == "reencode":
            return None
        origin = final_origin(reader.origin, frames=len(times), moving=sum(valid))
        return Reading(reader, origin, times, valid, *size)

    reading = read(motion, whole=pictures) or read(motion, whole=True)
    assert reading is not None, "whole pictures are not spoilt"
    if motion == "auto" and reading.origin.kind == "none" and len(reading.times) > 1:
        again = read("reencode", whole=pictures)
        assert again is not None, "only native vectors spoil pictures"
        return replace(again, origin=replace(again.origin, why=reading.origin.why))
    return reading


def _shown(reader: VideoReader, pictures: bool) -> Iterator[tuple[Decoded, VideoFrame]]:
    """Yield decoded frames with their pictures, cut as the container says."""
    cut = Cropper()
    for item, source in _sources(reader, pictures):
        yield item, cut(source, reader.crop_of(source))


def _sources(reader: VideoReader, pictures: bool) -> Iterator[tuple[Decoded, VideoFrame]]:
    """Yield decoded frames with their pictures, whose fields are joined where they are woven."""
    items = iter(reader)
    first = next(items, None)  # only now does the reader know what the header says
    everything = chain([] if first is None else [first], items)
    wanted = pictures or reader.origin.kind == "reencode" or reader.maybe_interlaced
    if wanted and reader.codec not in SEPARATE_FIELDS:
        for item, picture in deinterlaced(
            everything,
            every=reader.all_interlaced,
            guessed=reader.codec == "h264",
            suspected=reader.maybe_interlaced,
        ):
            if picture is not item.frame:
                reader.found_fields()
            yield item, picture
    else:
        yield from ((item, item.frame) for item in everything)
