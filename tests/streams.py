"""Streams that no encoder at hand makes: packets of several encodings joined, their bits edited."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

X264_ONE_REFERENCE = {"bf": "0", "refs": "1", "qp": "12", "tune": "zerolatency"}
X264_SEVERAL = {"bf": "2", "refs": "4", "qp": "12", "x264-params": "b-adapt=0"}


class Encoded(NamedTuple):
    """What an encoder made of pictures.

    Attributes:
        extradata: The header; empty where packets hold it.
        packets: Packets in order of decoding.
        size: Width and height.
    """

    extradata: bytes
    packets: list[av.Packet]
    size: tuple[int, int]


def encode(
    pictures: Iterable[np.ndarray],
    codec: str,
    options: Mapping[str, str] | None = None,
    *,
    bit_rate: int | None = None,
    header_apart: bool = False,
) -> Encoded:
    """Encode RGB pictures at 25 frames a second."""
    encoder = av.CodecContext.create(codec, "w")
    packets: list[av.Packet] = []
    for index, picture in enumerate(pictures):
        if not index:
            encoder.height, encoder.width = picture.shape[:2]
            encoder.pix_fmt = "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.thread_count = 1
            encoder.options = dict(options or {})
            if bit_rate is not None:
                encoder.bit_rate = bit_rate
            if header_apart:
                encoder.flags |= 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = index, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return Encoded(encoder.extradata or b"", packets, (encoder.width, encoder.height))


def join(path: Path, raw_format: str, parts: Sequence[Encoded]) -> Path:
    """Write encodings one after the other into one stream, under the header of the first.

    Args:
        path: Where to write; the suffix decides the container.
        raw_format: FFmpeg's name of the format of bare packets: `h264`, `m4v`, `mpegvideo`.
        parts: The encodings, of one codec.
    """
    bare = io.BytesIO(b"".join(bytes(packet) for packet in parts[0].packets))
    with av.open(bare, format=raw_format) as first, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(first.streams.video[0])
        begin, last = 0, -1
        for part in parts:
            begin += max(0, last + 1 - begin - min(packet.dts for packet in part.packets))
            for packet in part.packets:
                new = av.Packet(bytes(packet))
                new.time_base, new.stream = Fraction(1, 25), stream
                new.pts, new.dts = packet.pts + begin, packet.dts + begin
                new.is_keyframe = packet.is_keyframe
                last = new.dts
                container.mux(new)
            begin += 1 + max(packet.pts for packet in part.packets)
    return path


def layered(pictures: Sequence[np.ndarray], period: int) -> Encoded:
    """Encode H.264 whose pictures refer to every `period`-th picture alone: temporal layers."""
    options = {**X264_ONE_REFERENCE, "profile": "baseline", "x264-params": "keyint=infinite"}
    base: list[np.ndarray] = []
    packets = []
    extradata, size = b"", (0, 0)
    for index, picture in enumerate(pictures):
        if index % period == 0:
            base.append(picture)
        made = encode(base if index % period == 0 else [*base, picture], "libx264", options)
        extradata, size = made.extradata, made.size
        data = bytes(made.packets[-1])
        packet = av.Packet(data if index % period == 0 else _unreferred(data))
        packet.pts = packet.dts = index
        packet.is_keyframe = index == 0
        packets.append(packet)
    return Encoded(extradata, packets, size)


def _unreferred(packet: bytes) -> bytes:
    """Mark the only slice of a packet as never referred to: as a baseline P-slice of x264."""
    at = max(packet.rfind(b"\0\0\1\x41"), packet.rfind(b"\0\0\1\x61")) + 3
    payload = packet[at + 1 :].replace(b"\0\0\3", b"\0\0")
    bits = f"{int.from_bytes(payload):0{8 * len(payload)}b}"
    place = 0
    for _ in range(3):  # first macroblock, type, parameter set
        place = _behind_golomb(bits, place)
    place += 4  # frame_num, of 4 bits for so few frames
    assert bits[place : place + 3] == "000", "no override, no reordering, sliding window"
    bits = bits[: place + 2] + bits[place + 3 :]  # without dec_ref_pic_marking
    bits = bits.rstrip("0")
    bits += "0" * (-len(bits) % 8)
    return packet[:at] + b"\x01" + _escaped(int(bits, 2).to_bytes(len(bits) // 8))


def _behind_golomb(bits: str, place: int) -> int:
    zeros = bits.index("1", place) - place
    return place + 2 * zeros + 1


def _escaped(payload: bytes) -> bytes:
    """Put in the bytes that keep start codes out of a NAL unit."""
    done = bytearray()
    for byte in payload:
        if done[-2:] == b"\0\0" and byte < 4:
            done.append(3)
        done.append(byte)
    return bytes(done)


def soft_telecine(encoded: Encoded) -> Encoded:
    """Ask players of progressive MPEG-2, or of H.264 with times in its SEI, to repeat fields.

    That is how film at 24 frames a second fills 60 fields; each frame is a whole picture.
    """
    packets = []
    for index, packet in enumerate(encoded.packets):
        data = bytearray(bytes(packet))
        for at in _positions(data, b"\0\0\1\xb5\x14"):  # MPEG-2's sequence extension
            data[at + 5] &= ~0x08  # not a progressive sequence
        for at in _positions(data, b"\0\0\1\xb5\x8f"):  # its picture coding extension
            top, repeated = [(1, 1), (0, 0), (0, 1), (1, 0)][index % 4]
            data[at + 7] = data[at + 7] & ~0x82 | top << 7 | repeated << 1
        for at in _positions(data, b"\0\0\1\6\1\1\4"):  # SEI of one byte: pic_struct 0
            data[at + 6] = [0x32, 0x51, 0x42, 0x61][index % 4]  # 3, 5, 4, 6
        new = av.Packet(bytes(data))
        new.pts, new.dts, new.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
        packets.append(new)
    return encoded._replace(packets=packets)


def _positions(data: bytes | bytearray, wanted: bytes) -> list[int]:
    found = [data.find(wanted)]
    while found[-1] >= 0:
        found.append(data.find(wanted, found[-1] + 1))
    return found[:-1]


def coded_in_fields(pictures: Iterable[np.ndarray], in_fields: Iterable[bool]) -> Encoded:
    """Code grey pictures as H.264 without compression, each as two fields or as one frame (PAFF).

    Args:
        pictures: (H, W) uint8, sides that are multiples of 32.
        in_fields: How each one is coded.
    """
    packets = []
    size = (0, 0)
    for index, (picture, fields) in enumerate(zip(pictures, in_fields, strict=True)):
        size = (picture.shape[1], picture.shape[0])
        sps = f"{77:08b}{0:08b}{30:08b}" + _golomb(0, 0, 0, 4, 1) + "0"
        sps += _golomb(size[0] // 16 - 1, size[1] // 32 - 1) + "00" + "1" + "0" + "0"
        pps = _golomb(0, 0) + "00" + _golomb(0, 0, 0) + "000" + _golomb(0, 0, 0) + "100"
        data = _unit(0x67, sps) + _unit(0x68, pps)
        if fields:
            data += _slice(picture[::2], index, field=0) + _slice(picture[1::2], index, field=1)
        else:
            data += _slice(picture, index, field=None)
        packet = av.Packet(data)
        packet.pts = packet.dts = index
        packet.is_keyframe = True
        packets.append(packet)
    return Encoded(b"", packets, size)


def _slice(picture: np.ndarray, index: int, *, field: int | None) -> bytes:
    key = field != 1  # the second field of a key frame is none itself
    bits = _golomb(0, 7, 0) + "0000"  # first macroblock, all of type I, parameter set, frame_num
    bits += "0" if field is None else f"1{field}"
    bits += (_golomb(index % 2) if key else "") + f"{field or 0:08b}"  # order of presentation
    bits += ("00" if key else "0") + _golomb(0, 1)  # marking, quantizer, no loop filter
    for top in range(0, picture.shape[0], 16):
        for left in range(0, picture.shape[1], 16):
            bits += _golomb(25)  # as it is
            bits += "0" * (-len(bits) % 8)
            block = picture[top : top + 16, left : left + 16].tobytes() + b"\x80" * 128
            bits += f"{int.from_bytes(block):0{8 * len(block)}b}"
    return _unit(0x65 if key else 0x41, bits)


def _golomb(*values: int) -> str:
    return "".join("0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}" for value in values)


def _unit(head: int, bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return b"\0\0\0\1" + bytes([head]) + _escaped(int(bits, 2).to_bytes(len(bits) // 8))
