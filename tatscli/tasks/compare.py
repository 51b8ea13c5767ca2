"""Comparing results: side by side, averaged over seeds, and video by video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.evaluation.intervals import difference_interval
from tatscli.evaluation.significance import holm, mcnemar, mean_interval
from tatscli.tasks.results import (
    VideoScores,
    identity,
    read_result,
    read_scores,
    results_home,
    results_in,
)
from tatscli.weights.paths import is_foreign

METRICS = ("top1", "top5", "mean_class", "ece", "nll")
SEED = 0  # of the draws that a difference is judged by


@dataclass(frozen=True, slots=True)
class Compared:
    """A result to compare.

    Attributes:
        name: The run folder or file that the user gave.
        path: The result file.
        facts: Its content.
    """

    name: str
    path: Path
    facts: dict[str, Any]


def compare(
    runs: Sequence[Path],
    *,
    reporter: Reporter,
    name: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    group: bool = False,
    paired: bool = False,
    common: bool = False,
) -> dict[str, Any]:
    """Put results side by side.

    Args:
        runs: Run folders, each for its newest result, or result files.
        reporter: Warns of differences between the results.
        name: Result to use of each run, such as `finetuned-val-2x3`.
        split: Use only results of this split.
        protocol: Use only results of this protocol.
        group: Also average results that differ only in seed and weights.
        paired: Also compare each result with the first, on the same videos.
        common: Compare on the videos that both have, if they differ.

    Returns:
        `results`, one entry each; with `group` also `groups`: `seeds`, and for every metric `mean`,
        `std` and Student's `interval`; with `paired` also `paired`, and in `test` the methods.

    Raises:
        TatsError: If there is no such result, or scores do not belong together.
    """
    if group and paired:
        raise UsageError("`--group` and `--paired` exclude each other")
    if common and not paired:
        raise UsageError("`--common` needs `--paired`")
    if paired and len(runs) < 2:
        raise UsageError("`--paired` needs at least two results")
    found = [find_result(run, name=name, split=split, protocol=protocol) for run in runs]
    _warn_of_differences(found, reporter)
    answer: dict[str, Any] = {"results": [_row(one) for one in found]}
    if group:
        answer["groups"] = groups(found)
    if paired:
        pairs = [compare_pair(found[0], one, reporter, common=common) for one in found[1:]]
        if len(pairs) > 1:
            corrected = holm([pair["p"] for pair in pairs])
            pairs = [pair | {"p_holm": p} for pair, p in zip(pairs, corrected, strict=True)]
        answer["paired"] = pairs
        answer["test"] = {
            "p": "McNemar, exact, two-sided",
            "mid_p": "McNemar, mid-p, two-sided",
            "p_holm": "p after Holm's correction" if len(pairs) > 1 else None,
            "difference_interval": "paired percentile bootstrap, 95 %, 2000 draws, seed 0",
        }
    return answer


def find_result(
    run: Path, *, name: str | None = None, split: str | None = None, protocol: str | None = None
) -> Compared:
    """Return the result that `run` means: a file, or the newest matching one of a run folder or of
    weights from another program.

    Raises:
        DataError: If there is none with a top-1 accuracy.
    """
    home = results_home(run, run) if is_foreign(run) else run
    if home is run and not run.is_dir():
        found = Compared(str(run), run, read_result(run))
        if "top1" not in found.facts:
            raise DataError(f"`{run}` has no top-1: its protocol is `{found.facts['protocol']}`")
        return found
    there = [one for one in results_in(home) if "top1" in one[1]]
    for path, facts in there:
        named = name is None or path.stem == name.removesuffix(".json")
        if named and split in (None, facts["split"]) and protocol in (None, facts["protocol"]):
            return Compared(str(run), path, facts)
    wanted = [
        f"`--{key} {one}`"
        for key, one in (("name", name), ("split", split), ("protocol", protocol))
        if one is not None
    ]
    have = ", ".join(f"`{path.stem}`" for path, _ in there)
    raise DataError(
        f"`{run}` has no classification result" + (f" for {' '.join(wanted)}" if have else ""),
        hint=f"it has {have}" if have else f"`tats evaluate {run}` makes one",
    )


def groups(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """Average results of the same evaluation that differ only in seed and weights.

    Raises:
        DataError: If two of a group have the same seed.
    """
    together: dict[str, list[Compared]] = {}
    for one in found:
        together.setdefault(_recipe_without_seed(one.facts), []).append(one)
    joined = []
    for members in together.values():
        by_seed: dict[int, Compared] = {}
        for one in members:
            seed = one.facts["recipe"]["run"]["seed"]
            if seed in by_seed:
                raise DataError(
                    f"`{by_seed[seed].name}` and `{one.name}` have the same recipe and the same "
                    f"seed, {seed}",
                    hint="leave out one of them",
                )
            by_seed[seed] = one
        scores: dict[str, Any] = {}
        for key in METRICS:
            values = [one.facts[key] for one in members if one.facts.get(key) is not None]
            if len(values) == len(members):
                mean, deviation, interval = mean_interval(values)
                scores[key] = {"mean": mean, "std": deviation, "interval": interval}
        joined.append(
            {"runs": [one.name for one in members], "seeds": sorted(by_seed)}
            | {key: members[0].facts[key] for key in ("protocol", "split", "segments", "crops")}
            | scores
        )
    return joined


def compare_pair(
    first: Compared, other: Compared, reporter: Reporter, *, common: bool
) -> dict[str, Any]:
    """Compare two results video by video.

    Returns:
        `run` and `against` (the first); `videos` compared, and in `beside` how many others the two
        have; how many `both` classify correctly, `only_first`, `only_second` and `neither`;
        `difference` in top-1 (the other's minus the first's) with `difference_interval`; `p` and
        `mid_p` of McNemar's test.

    Raises:
        DataError: If classes or labels differ, or videos do and `common` is not set.
    """
    one, two = (read_scores(each.path, each.facts) for each in (first, other))
    left, right = _matched(first, one, other, two, common=common)
    one_R, two_R = left.right_R, right.right_R
    source_R = left.source_R
    if len(np.unique(source_R)) < len(source_R):
        reporter.warn(
            "some videos are segments of one file: McNemar's test treats them as independent, the "
            "interval of the difference does not",
            once=True,
        )
    only_first, only_second = int((one_R & ~two_R).sum()), int((two_R & ~one_R).sum())
    exact, middle = mcnemar(only_first, only_second)
    return {
        "run": other.name,
        "against": first.name,
        "videos": len(one_R),
        "beside": [len(each.videos) - len(one_R) for each in (one, two)],
        "both": int((one_R & two_R).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "neither": int((~one_R & ~two_R).sum()),
        "difference": (only_second - only_first) / len(one_R),
        "difference_interval": difference_interval(one_R, two_R, source_R, seed=SEED),
        "p": exact,
        "mid_p": middle,
    }


def _matched(
    first: Compared, one: VideoScores, other: Compared, two: VideoScores, *, common: bool
) -> tuple[VideoScores, VideoScores]:
    """Return the videos that both results have, in the same order."""
    names = f"`{first.path}` and `{other.path}`"
    if one.class_names != two.class_names:
        raise DataError(f"{names} have different classes and cannot be compared video by video")
    place = {video: at for at, video in enumerate(two.videos)}
    left = [at for at, video in enumerate(one.videos) if video in place]
    right = [place[one.videos[at]] for at in left]
    if not left:
        raise DataError(f"{names} have no videos in common")
    if not common and not len(left) == len(one.videos) == len(two.videos):
        raise DataError(
            f"{names} have different videos: {len(left)} are in both, "
            f"{len(one.videos) - len(left)} only in the first, "
            f"{len(two.videos) - len(left)} only in the second",
            hint="`--common` compares on the videos that are in both",
        )
    pair = _part(one, left), _part(two, right)
    differing = np.flatnonzero(pair[0].label_R != pair[1].label_R)
    if len(differing):
        raise DataError(
            f"{names} have different labels for {len(differing)} videos, such as "
            f"`{pair[0].videos[differing[0]]}`"
        )
    return pair


def _part(scores: VideoScores, places: list[int]) -> VideoScores:
    return replace(
        scores,
        videos=[scores.videos[at] for at in places],
        label_R=scores.label_R[places],
        score_RL=scores.score_RL[places],
        row_R=scores.row_R[places],
        source_R=scores.source_R[places],
    )


def _row(one: Compared) -> dict[str, Any]:
    keys = ("protocol", "split", "segments", "crops", "videos", "views", "untrained", "step")
    more = ("top1_interval", "mean_class_interval", "checkpoint_sha256", "store_fingerprint")
    facts = one.facts
    return {
        "run": one.name,
        "result": str(one.path),
        **{key: facts.get(key) for key in (*keys, *METRICS, *more)},
        "skipped": len(facts.get("skipped") or ()),
        "seed": facts["recipe"]["run"]["seed"],
    }


def _recipe_without_seed(facts: dict[str, Any]) -> str:
    """Return a text that is equal for results that differ only in seed and weights."""
    plain = identity(facts)
    del plain["checkpoint_sha256"]
    plain["recipe"] = plain["recipe"] | {"run": plain["recipe"]["run"] | {"seed": None}}
    started = facts.get("init") is not None  # from pretrained weights, or from scratch
    return json.dumps([plain, facts.get("step"), started], sort_keys=True)


def _warn_of_differences(found: Sequence[Compared], reporter: Reporter) -> None:
    for key, what in (
        ("protocol", "protocols"),
        ("split", "splits"),
        ("store_fingerprint", "stores"),
    ):
        values = {one.facts.get(key) for one in found}
        if len(values) > 1:
            named = "" if key == "store_fingerprint" else f": {', '.join(sorted(map(str, values)))}"
            reporter.warn(f"the results have different {what}{named}")
