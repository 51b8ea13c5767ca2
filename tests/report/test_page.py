"""The page: self-contained, escaped, and whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import torch

from tatscli.report.page import Bar, Figure, Gallery, Page, Section, Table, render
from tatscli.report.pictures import animation, strip

NASTY = '"><script>alert("x")</script>&'


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def nasty_page() -> Page:
    picture = strip(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    section = Section(
        NASTY,
        note=NASTY,
        table=Table([NASTY], [[NASTY]]),
        bars=[Bar(NASTY, 0.25, NASTY)],
        galleries=[Gallery(NASTY, [Figure(picture, NASTY, [NASTY], "right")])],
        text=NASTY,
        fold=NASTY,
    )
    return Page(NASTY, NASTY, [(NASTY, NASTY)], [section])


def test_all_text_is_escaped() -> None:
    html = render(nasty_page())
    assert "<script" not in html
    tags = Tags(html)
    assert tags.text.count(NASTY) == 17  # every place once
    assert all(not name.startswith("on") for _, given in tags.found for name in given)


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render(nasty_page())
    for tag, given in Tags(html).found:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert (given.get("src") or "data:").startswith("data:")
        assert (given.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(", html)


def test_what_messages_put_in_backticks_is_code_and_escaped() -> None:
    section = Section("S", note="Not shown: there is no store at `<b>gone</b>`.")
    html = render(Page("T", "", [], [section]))
    assert "at <code>&lt;b&gt;gone&lt;/b&gt;</code>." in html


def test_it_fits_a_phone_and_paper() -> None:
    html = render(nasty_page())
    assert 'name="viewport"' in html and "@media print" in html


def test_a_strip_shows_the_first_frame_and_the_last() -> None:
    import base64
    import io

    from PIL import Image

    video = torch.zeros(9, 3, 24, 24, dtype=torch.uint8)
    video[0, 0], video[-1, 2] = 255, 255
    uri = strip(video, frames=3, height=24)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert picture.shape == (24, 3 * 24 + 2 * 2, 3)
    assert picture[12, 12].argmax() == 0 and picture[12, -12].argmax() == 2
    assert picture[12, picture.shape[1] // 2].max() < 30


def test_an_animation_keeps_its_frames_and_its_pace() -> None:
    import base64
    import io

    from PIL import Image

    frames = np.stack([np.full((16, 20, 3), 40 * place, np.uint8) for place in range(5)])
    picture = Image.open(io.BytesIO(base64.b64decode(animation(frames, fps=8).partition(",")[2])))
    assert picture.n_frames == 5 and picture.size == (20, 16)
    picture.seek(3)
    picture.load()
    assert picture.info["duration"] == 125
    assert abs(int(np.array(picture.convert("RGB")).mean()) - 120) < 8
