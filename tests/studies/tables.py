"""Tables of a study: means over seeds, their range, and paired differences to a reference."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from tests.studies.study import Study


def results(study: Study, folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Return what is known of each arm, by seed.

    Args:
        study: The study.
        folder: Its results; those of arms of other studies lie beside it.
    """
    known: dict[str, dict[int, dict[str, Any]]] = {}
    for name, arm in study.arms.items():
        place = folder.with_name(arm.of) if arm.of else folder
        found = [json.loads(path.read_text()) for path in place.glob(f"{name}-*.json")]
        cells = {cell["seed"]: cell for cell in found if cell["arm"] == name}
        known[name] = {seed: cells[seed] for seed in sorted(cells)}
    return known


def begun(study: Study, folder: Path) -> bool:
    """Whether there are results of arms that the study runs itself."""
    known = results(study, folder)
    return any(cells for name, cells in known.items() if study.arms[name].of is None)


def spread(values: Sequence[float]) -> str:
    """Return mean, standard error, lowest and highest."""
    error = f" +- {_error(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{error} ({min(values):.3f} to {max(values):.3f})"


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences, its standard error and the two-sided p of a paired t
    test; the last two are NaN of a single pair."""
    pairs = [a - b for a, b in zip(one, other, strict=True)]
    if len(pairs) < 2:
        return statistics.mean(pairs), math.nan, math.nan
    return statistics.mean(pairs), _error(pairs), float(stats.ttest_rel(one, other).pvalue)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def page(study: Study, folder: Path) -> str:
    """Return the page of a study: question, criterion, table, figures and command."""
    count = len([cell for cells in results(study, folder).values() for cell in cells.values()])
    wanted = len(study.arms) * len(study.seeds)
    figures = [stem for stem in ("scores", "curves") if (folder / f"{stem}.svg").is_file()]
    lines = [
        f"<!-- Written by tests/studies/run.py from tests/studies/{folder.name}.yaml and the files "
        "beside this one. -->",
        f"# {study.question}",
        "",
        f"{count} of {wanted} runs are done. What counts was written down before the first:",
        "",
        *(f"- **{answer}**: {what}" for answer, what in study.criterion.items()),
        "",
        "Mean of the seeds, standard error, lowest and highest; differences are paired by seed, "
        "with the p of a t test; minutes are processor time of one thread.",
        "",
        *markdown(study, folder).splitlines()[2:],
        "",
        *(line for stem in figures for line in (f"![{stem}]({stem}.svg)", "")),
        f"    python tests/studies/run.py tests/studies/{folder.name}.yaml --data DATA --out OUT",
        "",
    ]
    return "\n".join(lines)


def markdown(study: Study, folder: Path) -> str:
    """Return the table of a study; differences are to its reference, or to the arm that is named
    with them, on the seeds of both."""
    known = results(study, folder)
    names = list(study.scores)
    heads = [f"{name} | to `{study.reference}`" for name in names]
    lines = [
        f"**{study.question}**",
        "",
        f"| arm | seeds | views | {' | '.join(heads)} | processor minutes |",
        "|---" * (4 + 2 * len(names)) + "|",
    ]
    for arm, cells in known.items():
        if not cells:
            continue
        other = study.arms[arm].against
        rows = [_row(name, cells, known[other or study.reference], other) for name in names]
        minutes = statistics.mean(sum(cell["seconds"].values()) for cell in cells.values()) / 60
        views = max(cell["views"] for cell in cells.values())
        lines.append(f"| `{arm}` | {len(cells)} | {views:,} | {' | '.join(rows)} | {minutes:.0f} |")
    return "\n".join(lines)


def _row(
    name: str,
    cells: dict[int, dict[str, Any]],
    reference: dict[int, dict[str, Any]],
    other: str | None,
) -> str:
    mine = {seed: cell["scores"][name] for seed, cell in cells.items() if name in cell["scores"]}
    if not mine:
        return " | "
    seeds = [seed for seed in mine if name in reference.get(seed, {"scores": {}})["scores"]]
    if not seeds or cells is reference:
        return f"{spread(list(mine.values()))} | "
    gain, error, p = difference(
        [mine[seed] for seed in seeds], [reference[seed]["scores"][name] for seed in seeds]
    )
    give = "" if math.isnan(error) else f" +- {error:.3f}, p {p:.3f}"
    named = f" to `{other}`" if other else ""
    return f"{spread(list(mine.values()))} | {gain:+.3f}{give}{named}"
