"""Which files keep their own vectors: what their headers say of references."""

import pytest

from tatscli.video.decode import open_video
from tatscli.video.origin import choose_origin, is_disposable
from tests.clips import pan, render


@pytest.mark.parametrize(
    ("references", "kind", "why"),
    [(1, "native", "one reference frame"), (2, "reencode", "2 reference frames: vectors may span")],
)
def test_h264_keeps_its_vectors_if_it_refers_to_one_frame(tmp_path, references, kind, why):
    path = render(
        tmp_path / "a.mp4",
        pan(frames=8, height=64, width=96),
        options={"x264-params": f"ref={references}:bframes=0"},
    )
    with open_video(path) as (_, stream):
        origin = choose_origin(stream, "auto")
    assert origin.kind == kind and origin.why.startswith(why)


@pytest.mark.parametrize("size", ["000" + "1" * 16, "001" + "1" * 32, "010"])
@pytest.mark.parametrize(("kind", "disposable"), [("00", False), ("01", False), ("10", True)])
def test_sorenson_pictures_that_none_refers_to(size, kind, disposable):
    """The type stands after start code, version, time and a size of 3, 19 or 35 bits."""
    bits = f"{1:017b}00001" + "11111111" + size + kind
    picture = int(bits.ljust(72, "1"), 2).to_bytes(9)
    assert is_disposable(picture) is disposable
    assert not is_disposable(picture[: len(bits) // 8 - 1])  # breaks off before the type
