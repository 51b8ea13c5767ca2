"""A folder of videos: sub-folders are classes, or splits with classes inside."""

from __future__ import annotations

from tatscli.errors import DataError
from tatscli.store.annotations.formats import AnnotationFormat, AnnotationInput, Annotations, Entry
from tatscli.store.annotations.videos import readable

SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})


def read(inputs: AnnotationInput) -> Annotations:
    """Take every file with a video suffix.

    Raises:
        DataError: There is none.
    """
    videos = inputs.videos
    found = videos.paths
    if not found:
        seen = ", ".join(f"{n} x {suffix}" for suffix, n in videos.others.most_common(3))
        holds = f"it holds {seen}" if seen else "it is empty"
        if videos.closed:
            holds = f"`{videos.closed[0]}` cannot be read"
        raise DataError(
            f"no videos in `{videos.folder}`: {holds}",
            "give the folder with the videos (.mp4, .webm, .avi, ...)",
        )
    tops = {path.parts[0] for path in found if len(path.parts) > 1}
    by_split = bool(tops) and {top.lower() for top in tops} <= SPLIT_FOLDERS
    level = 1 if by_split else 0
    classes = sorted({path.parts[level] for path in found if len(path.parts) > level + 1})
    if len(classes) == 1:  # a single folder is no class: `clips/`
        classes = []
    index = {name: number for number, name in enumerate(classes)}
    entries = [
        Entry(
            video=str(path),
            path=videos.folder / path,
            where=f"`{videos.folder}`",
            label=index.get(path.parts[level]) if len(path.parts) > level + 1 else None,
            split=path.parts[0] if by_split and len(path.parts) > 1 else None,
        )
        for path in found
    ]
    count = f"{len(entries)} video{'' if len(entries) == 1 else 's'}"
    findings = [f"found {count} in `{videos.folder}`"]
    if by_split:
        findings.append(f"the sub-folders are splits: {', '.join(sorted(tops))}")
    if classes:
        findings.append(f"{len(classes)} classes from the names of sub-folders")
    else:
        findings.append("no class sub-folders: videos are unlabelled")
    return Annotations(entries, [readable(name) for name in classes], findings)


FOLDERS = AnnotationFormat(
    title="folders of videos", files="no files at all", read=read, recognise=lambda file: False
)
