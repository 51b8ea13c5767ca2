"""The findings of `tats replay`: as one object, and as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.trace import Seen, Trace, first_bad, worst_of
from tatscli.engine.training import Training
from tatscli.tasks.training import Stage

LARGEST = 10
"""Modules listed as those with the largest outputs."""


@dataclass(frozen=True, slots=True)
class Passed:
    """One micro-batch that was replayed.

    Attributes:
        rank: The rank it belongs to.
        part: Its number among those of the rank.
        batch: The batch.
        loss: Its loss.
        by_sample: The losses of its views.
        trace: Outputs and gradients of the modules.
    """

    rank: int
    part: int
    batch: Batch
    loss: float
    by_sample: list[float]
    trace: Trace


def describe(
    run: Path,
    kept: Checkpoint,
    stage: Stage,
    training: Training,
    passed: list[Passed],
    norm: float,
) -> dict[str, Any]:
    """Return the findings, as `replay` does.

    Args:
        run: The run folder.
        kept: The bad step.
        stage: What was trained.
        training: The restored training.
        passed: All micro-batches.
        norm: Norm of the model's gradient.
    """
    loss = sum(one.loss for one in passed) / len(passed)
    limit = kept.meta["limit"]
    problems = []
    if not math.isfinite(loss):
        problems.append("the loss is not finite")
    elif limit is not None and loss > limit:
        problems.append(f"the loss is above {limit:.4g}, the limit of that step")
    if not math.isfinite(norm):
        problems.append("the gradient is not finite")
    parameters = dict(stage.model.named_parameters())
    return {
        "run": str(run),
        "kind": kept.kind,
        "step": kept.step + 1,  # from 1, as in the messages and metrics of the training
        "reason": kept.meta["reason"],
        "precision": str(training.dtype).removeprefix("torch."),
        "device": str(training.device),
        "processes": len(kept.meta["rows"]),
        "finite": not problems,
        "problems": problems,
        "loss": loss,
        "limit": limit,
        "grad_norm": norm,
        "weights_not_finite": [n for n, one in parameters.items() if not _finite(one)],
        "gradients_not_finite": [n for n, one in parameters.items() if not _finite(one.grad)],
        "first_output": _first(passed, stage, "outputs"),
        "first_gradient": _first(passed, stage, "gradients"),
        "largest_outputs": _largest(passed),
        "videos": [row for one in passed for row in _videos(one, stage)],
    }


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def _first(passed: list[Passed], stage: Stage, what: str) -> dict[str, Any] | None:
    """Describe the first output or gradient that is not finite, in the first micro-batch with
    one."""
    for one in passed:
        found = first_bad(getattr(one.trace, what))
        if found is not None:
            ids = [stage.clips.name(row) for row in one.batch.row_B.tolist()]
            apart = len(found.bad_B) == len(ids)
            shares = found.bad_B if apart else [0.0] * len(ids)
            videos = [name for name, share in zip(ids, shares, strict=True) if share]
            return {
                "module": found.module,
                "type": found.kind,
                "shape": list(found.shape),
                "share": found.bad,
                "rank": one.rank,
                "batch": one.part,
                "videos": list(dict.fromkeys(videos)),
            }
    return None


def _largest(passed: list[Passed]) -> list[dict[str, Any]]:
    """List the modules with the largest finite outputs."""
    by_module: dict[str, Seen] = {}
    for one in passed:
        for seen in one.trace.outputs:
            known = by_module.get(seen.module)
            if known is None or seen.largest > known.largest:
                by_module[seen.module] = seen
    ranked = sorted(by_module.values(), key=lambda seen: -seen.largest)[:LARGEST]
    return [{"module": s.module, "type": s.kind, "largest": s.largest} for s in ranked]


def _videos(one: Passed, stage: Stage) -> list[dict[str, Any]]:
    """Describe every view of a micro-batch."""
    rows, numbers = one.batch.row_B.tolist(), one.batch.view_B.tolist()
    described = []
    for place, (row, number, loss) in enumerate(zip(rows, numbers, one.by_sample, strict=True)):
        worst = worst_of(one.trace.outputs, place)
        bad, largest = worst.of(place) if worst is not None else (0.0, 0.0)
        described.append(
            {
                "id": stage.clips.name(row),
                "row": row,
                "view": number,
                "rank": one.rank,
                "batch": one.part,
                "loss": loss,
                "module": None if worst is None else worst.module,
                "not_finite": bad,
                "largest": largest,
            }
        )
    return described


def show(result: dict[str, Any], reporter: Reporter, *, limit: int) -> None:
    """Print the findings of `replay`, with at most `limit` videos, the worst first."""
    reporter.table(
        f"step {result['step']} of {result['run']} in {result['precision']}: "
        + ("; ".join(result["problems"]) or "everything is finite"),
        ["", ""],
        [
            ("skipped because", result["reason"]),
            ("loss", f"{result['loss']:.6g}"),
            ("gradient norm", f"{result['grad_norm']:.6g}"),
            *_bad_rows("output", result["first_output"]),
            *_bad_rows("gradient", result["first_gradient"]),
            ("weights that are not finite", _named(result["weights_not_finite"] or ["none"])),
        ],
    )
    reporter.table(
        "largest outputs",
        ["module", "type", "largest"],
        [
            (one["module"], one["type"], f"{one['largest']:.4g}")
            for one in result["largest_outputs"]
        ],
    )
    worst = sorted(result["videos"], key=_badness, reverse=True)
    reporter.table(
        f"videos, the worst {min(limit, len(worst))} of {len(worst)}",
        ["video", "loss", "worst module", "not finite", "largest"],
        [
            (one["id"], f"{one['loss']:.4g}", one["module"] or "", f"{one['not_finite']:.1%}",
             f"{one['largest']:.4g}")
            for one in worst[:limit]
        ],
    )  # fmt: skip


def _badness(video: dict[str, Any]) -> tuple[float, float]:
    loss = video["loss"]
    return video["not_finite"], loss if math.isfinite(loss) else math.inf


def _bad_rows(what: str, found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return rows about the first output or gradient that is not finite: a line each, so that the
    table stays narrow."""
    name = f"first {what} that is not finite"
    if found is None:
        return [(name, "none")]
    shape = " x ".join(map(str, found["shape"]))
    rows = [
        (name, f"{found['module']} ({found['type']})"),
        ("", f"{found['share']:.1%} of its {shape} values"),
    ]
    return rows + ([("", f"in {_named(found['videos'])}")] if found["videos"] else [])


def _named(names: Sequence[str]) -> str:
    """Write the first name, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} more" if more else "")
