"""Predictions in pictures of any size: inside the box, bars as long as they are probable."""

import numpy as np
import pytest

from tatscli.evaluation.predictions import Prediction
from tatscli.visualize.predictions import _BAR, draw_predictions


def said(*probabilities: float, name: str = "turning") -> list[Prediction]:
    return [Prediction(name, n, share, 0.0, 1.0) for n, share in enumerate(probabilities)]


@pytest.mark.parametrize("size", [(720, 1280), (240, 320), (64, 48), (16, 16), (1, 1), (9, 900)])
@pytest.mark.parametrize("classes", [0, 1, 50])
def test_any_picture_takes_them(size, classes):
    picture = np.full((*size, 3), 200, np.uint8)
    draw_predictions(picture, said(*[0.5] * classes, name="ü" * 200), caption="0.00 to 1.00 s")
    assert picture.shape == (*size, 3)
    if min(size) > 9:
        assert picture[0, 0].tolist() == [66, 66, 66]


def test_bars_are_as_long_as_classes_are_probable():
    picture = np.zeros((440, 800, 3), np.uint8)
    draw_predictions(picture, said(1.0, 0.5, 0.0), caption="")
    blue = (picture == _BAR).all(axis=2)
    rows = np.flatnonzero(blue.any(axis=1))
    tops = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    lengths = [max(np.flatnonzero(blue[row]).max() for row in part) for part in tops]
    assert len(lengths) == 2
    assert lengths[1] / lengths[0] == pytest.approx(0.5, abs=0.02)
    assert not picture[300:].any()
