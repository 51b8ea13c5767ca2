"""What a `Reporter` prints, and how."""

from __future__ import annotations

import pytest

from tatscli.console import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.042, "0.042 s"),
        (7.31, "7.3 s"),
        (59.6, "60 s"),
        (89, "89 s"),
        (95, "2 min"),
        (3600, "60 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (11_100, "3 h 5 min"),
        (187_200, "2 days 4 h"),
        (172_800, "2 days"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
