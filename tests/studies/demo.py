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
RESULT = RESULTS / "demo"


def run(out: Path, seed: int, isa: str, keys: list[str]) -> dict[str, object]:
    """Run the demo in a folder that is removed, and return what is kept of it.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    folder = out / f"demo-{isa}-{seed}"
    command = [sys.executable, "-m", "tatscli", "demo", *keys, f"run.seed={seed}"]
    command += ["--out", str(folder), "--overwrite", "--json", "--quiet"]
    env = {**os.environ, **ISA[isa], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    said = json.loads(done.stdout)
    shutil.rmtree(folder)
    about = {"commit": commit(), "isa": isa, "seed": seed, "keys": keys, "machine": machine()}
    kept = ("chance", "from_scratch", "pretrained", "seconds", "total_seconds")
    return about | {key: said[key] for key in kept}


def table() -> str:
    """Return means, standard errors and ranges over the seeds, by instruction set."""
    lines = ["| | seeds | from scratch | pretrained | least gain | seconds |", "|---" * 6 + "|"]
    for isa in ISA:
        cells = [json.loads(path.read_text()) for path in RESULT.glob(f"{isa}-*.json")]
        if not cells:
            continue
        scratch, pretrained = (
            [one[key] for one in cells] for key in ("from_scratch", "pretrained")
        )
        gain = min(b - a for a, b in zip(scratch, pretrained, strict=True))
        seconds = max(one["total_seconds"] for one in cells)
        lines.append(
            f"| {isa} | {len(cells)} | {spread(scratch)} | {spread(pretrained)} | {gain:+.3f}"
            f" | at most {seconds:.0f} |"
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
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    asked = parser.parse_args()
    if not asked.table:
        if asked.out is None:
            parser.error("--out says where to work")
        for seed in asked.seeds:
            file = asked.results / f"{asked.isa}-{seed}.json"
            if not file.exists():
                found = run(asked.out, seed, asked.isa, asked.keys)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(found, indent=1) + "\n")
                print(json.dumps(found), file=sys.stderr)
    print(table())


if __name__ == "__main__":
    main()
