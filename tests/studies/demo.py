"""Is the demo's gain there on every seed, and on every machine?

    python tests/studies/demo.py --out OUT --seeds 0 1 2 3 4
    python tests/studies/demo.py --out OUT --seeds 0 1 2 3 4 --isa AVX2
    python tests/studies/demo.py --table

Runs `tats demo` once for each seed that has no file `docs/studies/demo/<isa>-<seed>.json` yet, one
after the other. `--isa AVX2` takes the code paths of a machine without AVX-512, which round
differently. Recipe keys may come first, as in `demo.py optim.epochs=75 --out OUT`; they are written
down as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.studies.run import RESULTS, ROOT, commit, machine
from tests.studies.tables import spread

ISA = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "native": {},
}
MORE = {
    "5 epochs": ["finetune.optim.epochs=5"],
    "5 a class": ["data.shots=5", "finetune.optim.epochs=40", "finetune.optim.warmup_epochs=4"],
}
RESULT = RESULTS / "demo"


def run(out: Path, seed: int, isa: str, keys: list[str], *, more: bool) -> dict[str, object]:
    """Run the demo in a folder that is removed, and return what is kept of it.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    folder = out / f"demo-{isa}-{seed}"

    def tats(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "tatscli", *map(str, words), "--json", "--quiet"]
        env = {**os.environ, **ISA[isa], "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        return dict(json.loads(done.stdout))

    seeded = [*keys, f"run.seed={seed}"]
    said = tats("demo", *seeded, "--out", folder, "--overwrite")
    about = {"commit": commit(), "isa": isa, "seed": seed, "keys": keys, "machine": machine()}
    kept = ("chance", "from_scratch", "pretrained", "seconds", "total_seconds")
    found = about | {key: said[key] for key in kept}
    starts = {"from_scratch": ["--scratch"], "pretrained": ["--init", folder / "pretrained"]}
    for name, changes in MORE.items() if more else ():
        found[name] = {}
        for start, option in starts.items():
            tuned = folder / f"{start}-{name}"
            words = [*seeded, *changes, "--store", folder / "store", *option, "--out", tuned]
            tats("finetune", "demo", *words)
            found[name][start] = round(tats("evaluate", tuned)["top1"], 4)
    shutil.rmtree(folder)
    return found


def table() -> str:
    """Return means, standard errors and ranges over the seeds, by instruction set."""
    lines = ["| | seeds | from scratch | pretrained | least gain | seconds |", "|---" * 6 + "|"]
    for isa in ISA:
        cells = [json.loads(path.read_text()) for path in RESULT.glob(f"{isa}-*.json")]
        for name in (None, *MORE):
            scores = [cell[name] if name else cell for cell in cells if not name or name in cell]
            if not scores:
                continue
            scratch, pretrained = (
                [one[key] for one in scores] for key in ("from_scratch", "pretrained")
            )
            gain = min(b - a for a, b in zip(scratch, pretrained, strict=True))
            took = "" if name else f"at most {max(one['total_seconds'] for one in cells):.0f}"
            lines.append(
                f"| {isa}{f', {name}' if name else ''} | {len(scores)} | {spread(scratch)}"
                f" | {spread(pretrained)} | {gain:+.3f} | {took} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("keys", nargs="*", help="recipe keys, such as optim.epochs=50")
    parser.add_argument("--out", type=Path, help="folder to work in")
    parser.add_argument("--results", type=Path, default=RESULT, help="folder of the files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--isa", choices=ISA, default="native")
    parser.add_argument("--more", action="store_true", help="fine-tune also longer, and on less")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    asked = parser.parse_args()
    if not asked.table:
        if asked.out is None:
            parser.error("--out says where to work")
        for seed in asked.seeds:
            file = asked.results / f"{asked.isa}-{seed}.json"
            if not file.exists():
                found = run(asked.out, seed, asked.isa, asked.keys, more=asked.more)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(found, indent=1) + "\n")
                print(json.dumps(found), file=sys.stderr)
    print(table())


if __name__ == "__main__":
    main()
