"""What is said of the videos and annotations that were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tatscli.store.annotations import AnnotationFormat
from tatscli.store.annotations.files import AnnotationFile
from tatscli.store.annotations.formats import AnnotationInput

if TYPE_CHECKING:
    from tatscli.store.sources import Source


def findings_of(
    form: AnnotationFormat, inputs: AnnotationInput, sources: Sequence[Source], kind: str
) -> list[str]:
    """Say what a data set gave, and how much of the folder it does not mention."""
    splits = Counter(source.split for source in sources)
    counts = [
        f"{count_of(n, kind)} in {f'split `{split}`' if split else 'no split'}"
        for split, n in sorted(splits.items(), key=lambda item: item[0] is None)
    ]
    findings = [f"{form.title}, by {names_of(inputs.files)}: {', '.join(counts)}"]
    unlisted = len(inputs.videos.paths) - len({source.path for source in sources})
    if unlisted > 0:
        findings.append(
            f"{count_of(unlisted, 'further video')} in `{inputs.videos.folder}`"
            " not listed and left out"
        )
    return findings


def names_of(files: Sequence[AnnotationFile]) -> str:
    """Name the first three files, and say how many more there are."""
    named = ", ".join(f"`{file.path}`" for file in files[:3])
    return f"{named} and {len(files) - 3} more" if len(files) > 3 else named


def count_of(number: int, noun: str) -> str:
    """Return such as `1 video` or `3 videos`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
