"""Prepare a folder of awkward clips and write what became of each one into `docs/prepare.md`.

    python docs/clips_table.py ../shared/clips

Every file is taken, whatever its name; one worker, so that the times are of one core.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tatscli.store.convert import Converted, Job, convert
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings

PAGE = Path(__file__).with_name("prepare.md")
BEGIN, END = "<!-- clips: begin -->", "<!-- clips: end -->"
FOLDERS = ("real", "codecs", "nasty")


def timed(job: Job) -> tuple[Converted, float]:
    """Convert one file in a worker and take the time."""
    begun = time.perf_counter()
    return convert(job), time.perf_counter() - begun


def table(clips: Path) -> Iterable[str]:
    """Yield the lines of the table."""
    files = [file for name in FOLDERS for file in sorted((clips / name).iterdir())]
    run = partial(run_in_order, workers=1, timeout=60)
    good = 0
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = (Job(file, Path(folder, str(n)), Settings()) for n, file in enumerate(files))
        for job, outcome in run(timed, jobs):
            name = str(job.path.relative_to(clips)).replace("|", "\\|")
            if not isinstance(outcome, tuple):
                lines.append(f"| {name} | {outcome} | | | |")
                continue
            result, seconds = outcome
            facts = result.facts
            if facts is None:
                lines.append(f"| {name} | failed: {result.reason} | | | {seconds:.2f} |")
                continue
            good += 1
            frames, why = facts["frames"], facts["motion_why"]
            verdict = f"ok, {frames} frame{'' if frames == 1 else 's'}"
            if facts["warning"]:
                verdict += f"; {facts['warning']}"
            size = f"{facts['width']} x {facts['height']}"
            lines.append(
                f"| {name} | {verdict} | {size} | {facts['motion']}: {why} | {seconds:.2f} |"
            )
            if result.spool is not None:
                result.spool.remove()
    yield f"{len(files)} files: {good} ok, {len(files) - good} failed."
    yield ""
    yield "| file | verdict | stored | motion | s |"
    yield "|---|---|---|---|---|"
    yield from lines


def main() -> None:
    """Replace the table between the two marks."""
    clips = Path(sys.argv[1])
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(table(clips))
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
