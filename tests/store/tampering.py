"""Damages video files as disks, cables and fuzzers do; the same for the same seed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.clips import pan, render

FORMS = {
    "h264.mp4": "libx264",
    "mpeg4.avi": "mpeg4",
    "vp9.webm": "libvpx-vp9",
    "mjpeg.avi": "mjpeg",
    "mpeg2.ts": "mpeg2video",
    "hevc.mp4": "libx265",
}
"""Name and encoder of each seed."""


def render_seeds(folder: Path) -> dict[str, bytes]:
    """Render a short clip through each codec."""
    found = {}
    for name, codec in FORMS.items():
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        clip = pan((2, 1), frames=12, height=64, width=96, seed=3)
        render(folder / name, clip, codec=codec, options=options, pix_fmt=pixels)
        found[name] = (folder / name).read_bytes()
    return found


def tampered(data: bytes, chance: random.Random) -> bytes:
    """Return a file with flipped bits, a lost end, or blocks of zeros."""
    changed = bytearray(data)
    kind = chance.choice(("bits", "bits", "header", "end", "zeros"))
    if kind == "bits":
        for _ in range(2 ** chance.randrange(9)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == "header":  # sizes, counts and time stamps live at both ends
        near = min(1024, len(changed))
        for _ in range(2 ** chance.randrange(5)):
            place = chance.randrange(near)
            changed[chance.choice((place, len(changed) - 1 - place))] = chance.randrange(256)
    elif kind == "end":
        del changed[chance.randrange(len(changed)) :]
    else:
        for _ in range(chance.randint(1, 4)):
            start, length = chance.randrange(len(changed)), chance.choice((16, 188, 512, 4096))
            changed[start : start + length] = bytes(len(changed[start : start + length]))
    return bytes(changed)


def write_tampered(folder: Path, seeds: dict[str, bytes], count: int, *, seed: int) -> None:
    """Write so many damaged files, taking turns among the seeds."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    names = list(seeds)
    for number in range(count):
        name = names[number % len(names)]
        (folder / f"{number:04d}.{name}").write_bytes(tampered(seeds[name], chance))
