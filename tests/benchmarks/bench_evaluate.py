"""`tats evaluate` over 2 x 3 views against a plain loop over transformers' VideoMAE.

    python tests/benchmarks/bench_evaluate.py                     # about three minutes on 2 cores
    python tests/benchmarks/bench_evaluate.py --model tiny --videos 40

Videos of `grid_digits` (32 frames of 112 x 112; `--data` names the folder) in a store of JPEGs; 16
frames in two interleaved phases, three crops; the same random weights in both programs, whose
scores are compared. `square`: views of 112 x 112, as the videos are; the three crops are then the
same, and `tats` looks at each once. `oblong`: views of 112 x 96, of which all six differ.

- `tats`: `tats evaluate` as it comes: loader workers, views of several videos in a batch, metrics.
- `hf_view`: as scripts do: one view after the other, its frames decoded, through
  VideoMAEImageProcessor and VideoMAEForVideoClassification, and the softmax averaged.
- `hf_video`: the same more thriftily: the six views of a video in a batch, frames decoded once.

All read the store's JPEGs by torchvision, load their weights in each round, and have both cores.
The floor, in seconds of one core: the operations of the network for six views of each video at the
rate of a matrix product of its shape, and decoding each frame once. Prints one JSON object: medians
over rounds in which the sides take turns, and their ratios to `tats`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import workplace
from tests.benchmarks.measure import Crew, Taken, installed, load, ratios, rounded, take_turns

SHARED = Path(os.environ.get("TATS_SHARED") or Path(__file__).resolve().parents[3] / "shared")
SIZES = {"nano": (128, 6, 4), "tiny": (192, 12, 3), "small": (384, 12, 6)}  # width, blocks, heads
VIEWS = {"square": (112, 112), "oblong": (112, 96)}
FRAMES, PATCH, PHASES, CROPS, CLASSES = 16, 16, 2, 3, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(data: Path, out: Path, videos: int) -> Path:
    """Make a store of `grid_digits` whose split `val` is the first videos of its list."""
    from tatscli.cli import main as tats

    lines = (data / "val.csv").read_text().splitlines(keepends=True)
    words: list[str] = ["prepare", str(data), "--out", str(out / "store"), "--workers", "2", "-q"]
    for name, part in (("val", lines[:videos]), ("rest", lines[videos:])):
        (out / f"{name}.csv").write_text("".join(part))
        words += ["--annotations", f"{name}={out / f'{name}.csv'}"]
    with contextlib.redirect_stdout(sys.stderr):
        assert tats(words) == 0
    return out / "store"


def save(store: Path, out: Path, size: str, view: tuple[int, int]) -> tuple[Path, Path]:
    """Write the same random classifier as a run of `tats` and as a folder of transformers."""
    import torch
    import transformers

    from tatscli.engine.keeping import save_checkpoint
    from tatscli.recipe.schema import Recipe
    from tatscli.store.reader import Store
    from tests.nn.videomae_weights import blocks, both, moved, randomize

    width, depth, heads = SIZES[size]
    config = transformers.VideoMAEConfig(
        image_size=view,
        patch_size=PATCH,
        num_frames=FRAMES,
        tubelet_size=2,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=1e-6,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    randomize(theirs)  # else all videos have about the same scores
    theirs.save_pretrained(out / "hf")
    source = dict(theirs.state_dict())
    patch = both("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj")
    weights = moved(source, patch | both("fc_norm", "fc_norm") | both("classifier", "head"))
    weights |= blocks(source, "videomae.encoder.layer", "encoder.blocks", depth)
    assert not source
    weights |= {"encoder.norm.weight": torch.ones(width), "encoder.norm.bias": torch.zeros(width)}
    sampling = {"mode": "uniform"}
    recipe = Recipe.model_validate(
        {
            "data": {"store": str(store), "frames": FRAMES, "size": view, "sampling": sampling},
            "model": {"width": width, "depth": depth, "heads": heads, "patch": PATCH},
            "mask": {"kind": "tube", "ratio": 0.9},
            "run": {"device": "cpu"},
            "evaluate": {"segments": PHASES, "crops": CROPS},
        }
    )
    names = Store.open(store).class_names
    meta = {"kind": "finetuned", "recipe": recipe.model_dump(mode="json"), "class_names": names}
    save_checkpoint(out / "run", step=0, tensors={"model": weights}, meta=meta, keep=1, best=False)
    return out / "run", out / "hf"


def ours(run: Path) -> dict[str, list[float]]:
    """Evaluate as `tats evaluate` does; return the scores of each video."""
    import numpy as np

    from tatscli.console import Reporter
    from tatscli.tasks.evaluate import evaluate
    from tatscli.tasks.results import read_scores

    result = evaluate(run, reporter=Reporter(quiet=True))
    scores = read_scores(Path(result["results"]), result)
    return dict(zip(scores.videos, np.asarray(scores.score_RL).tolist(), strict=True))


def theirs(folder: Path, *, store: Path, together: bool) -> dict[str, list[float]]:
    """Evaluate by transformers, one view after the other or the views of a video together."""
    import torch
    import transformers

    from tatscli.data.vision import decode_jpegs
    from tatscli.store.reader import Store

    model = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    model.fc_norm.eps = 1e-6  # as published; the library leaves torch's default
    height, width = model.config.image_size
    processor = transformers.VideoMAEImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    )
    opened = Store.open(store)

    def phase(row: int, number: int) -> Any:
        length = opened.rows[row].frames
        frames = [(2 * i + number) * length // (2 * FRAMES) for i in range(FRAMES)]
        return decode_jpegs(opened.jpegs(row, frames))

    def crop(video: Any, number: int) -> list[Any]:
        left = number * (video.shape[-1] - width) // (CROPS - 1)
        return list(video[..., :height, left : left + width])

    found = {}
    with torch.no_grad():
        for row in opened.part("val"):
            if together:
                clips = [phase(row, number) for number in range(PHASES)]
                views = [crop(clip, number) for clip in clips for number in range(CROPS)]
                pixels = processor(views, return_tensors="pt")["pixel_values"]
                scores = model(pixels).logits.softmax(dim=-1)
            else:
                parts = []
                for number in range(PHASES * CROPS):
                    view = crop(phase(row, number // CROPS), number % CROPS)
                    pixels = processor(view, return_tensors="pt")["pixel_values"]
                    parts.append(model(pixels).logits.softmax(dim=-1))
                scores = torch.cat(parts)
            found[opened.rows[row].id] = scores.mean(dim=0).tolist()
    return found


def floor(size: str, view: tuple[int, int], store: Path, videos: int) -> dict[str, float]:
    """Return processor seconds of one thread that no program over all six views can do without."""
    import torch

    from tatscli.data.vision import decode_jpegs
    from tatscli.store.reader import Store

    torch.set_num_threads(1)
    width, depth, _ = SIZES[size]
    tokens = FRAMES // 2 * (view[0] // PATCH) * (view[1] // PATCH)
    clip = depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    clip += 2 * tokens * width * 2 * 3 * PATCH**2
    left, right = torch.randn(tokens, width), torch.randn(4 * width, width)

    def seconds(work: Callable[[], object], times: int) -> float:
        work()
        begun = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - begun) / times

    product = seconds(lambda: left @ right.T, 200)
    rate = 2 * tokens * width * 4 * width / product
    opened = Store.open(store)
    jpegs = opened.jpegs(opened.part("val")[0], range(2 * FRAMES))
    decoding = videos * seconds(lambda: decode_jpegs(jpegs), 20)
    return {
        "gflop_per_view": clip / 1e9,
        "gflop_per_second": rate / 1e9,
        "network": videos * PHASES * CROPS * clip / rate,
        "decoding": decoding,
    }


def compare(
    name: str, size: str, store: Path, out: Path, *, videos: int, rounds: int
) -> dict[str, Any]:
    """Measure one form of views."""
    run, folder = save(store, out / name, size, VIEWS[name])
    works: dict[str, Callable[[Path], dict[str, list[float]]]] = {
        "tats": ours,
        "hf_view": partial(theirs, store=store, together=False),
        "hf_video": partial(theirs, store=store, together=True),
    }
    crews = {side: Crew(cores=2) for side in works}
    sides: dict[str, Callable[[], Taken]] = {
        side: partial(crews[side].run, work, [run if side == "tats" else folder])
        for side, work in works.items()
    }
    medians, results = take_turns(sides, rounds=rounds)
    for crew in crews.values():
        crew.close()
    mine = results["tats"][0]
    return {
        "seconds": rounded(medians),
        "ratio": ratios(medians, "tats", ["hf_view", "hf_video"]),
        "spread_of_scores": _apart(*sorted(mine.values())[:: len(mine) - 1]),
        "largest_difference_of_scores": max(
            _apart(mine[video], other[video])
            for side in ("hf_view", "hf_video")
            for other in results[side]
            for video in mine
        ),
        "floor": {
            key: round(one, 4) for key, one in floor(size, VIEWS[name], store, videos).items()
        },
    }


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data/grid_digits")
    parser.add_argument("--model", default="small", choices=list(SIZES))
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=list(VIEWS))
    options = parser.parse_args()
    there, missing = installed("transformers")
    if not there or not options.data.is_dir():
        print(json.dumps({"skipped": missing or f"`{options.data}` is not there"}))
        return
    import torch
    import transformers

    from tests.benchmarks.bench_masks import machine

    result: dict[str, Any] = {
        "settings": {key: str(one) for key, one in vars(options).items()},
        "machine": {
            **machine("cpu"),
            "cores": 2,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
        "load_before": load(),
    }
    with workplace(None) as (_, outputs):
        store = prepare(options.data, outputs, options.videos)
        for name in options.views:
            result[name] = compare(
                name,
                options.model,
                store,
                outputs,
                videos=options.videos,
                rounds=options.rounds,
            )
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
