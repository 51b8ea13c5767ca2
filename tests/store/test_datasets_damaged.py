"""Damaged annotations of every data set."""

from random import Random

import pytest

from tatscli.errors import TatsError
from tests.store.published import NAMES


@pytest.mark.parametrize("name", ["ssv2", "kinetics", "ucf101", "hmdb51", "diving48", "epic100"])
def test_damaged_annotations_are_errors_with_a_message(request, data, name):
    """Whatever is in the files: an error of ours, or sources."""
    request.getfixturevalue(name)
    data.add("valvalvalva.mp4", *NAMES)
    random = Random(name)
    files = [
        path for path in sorted(data.root.rglob("*")) if path.suffix in (".json", ".csv", ".txt")
    ]
    whole = {path: path.read_bytes() for path in files}
    pieces = [
        b"",
        b"\n",
        b'"',
        b",",
        b"[",
        b"{",
        b"null",
        b"-1",
        b"9" * 5000,
        b"\xff",
        b"\x00",
        b"\0",
    ]
    messages = set()
    for _ in range(300):
        path = random.choice(files)
        text = whole[path]
        start = random.randrange(len(text))
        end = min(len(text), start + random.choice([0, 1, 5, 400]))
        path.write_bytes(text[:start] + random.choice(pieces) * random.choice([1, 3]) + text[end:])
        try:
            found = data.find(dataset=name)
        except TatsError as error:
            assert "`" in error.message
            messages.add(error.message)
        else:
            assert all(item.path.is_file() for item in found.items)
            assert all(item.label is None or found.class_names[item.label] for item in found.items)
        path.write_bytes(text)
    assert len(messages) > 20
