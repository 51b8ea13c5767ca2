"""What quantisation costs a small tokenizer of frames: its codes against the vectors themselves.

Arms, alike in data, steps, network and seed: the tokenizer of a recipe, and the same network with
nothing between encoder and decoder (`plain`), whose vectors are as wide as the codes'.

Written down before the run: on videos that training did not see, the mean PSNR of the tokenizer is
at least that of `plain` less 1.5 dB, and at least half of its codes are used. Both arms take as
many steps as the tokenizer takes in 15 minutes on two cores.

    python tests/studies/tokenizer.py --store STORE --out FOLDER [--recipe tokenizer/small]
        [--steps 1200] [--set KEY=VALUE ...]

STORE has the splits `train` and `val`. Both arms can be killed and started again; the figures are
printed, and kept in FOLDER/figures.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.commands.options import reporter
from tatscli.engine.session import Session
from tatscli.recipe.load import load_recipe
from tatscli.store.reader import Store
from tatscli.tasks import evaluate_tokenizer as evaluation
from tatscli.tasks.tokenizer import TokenizerTraining
from tatscli.tasks.training import run_training
from tatscli.tokenizer import load
from tatscli.tokenizer.base import Reconstruction
from tatscli.tokenizer.image import ImageTokenizer
from tatscli.tokenizer.quantize import Quantized, Quantizer


class Nothing(Quantizer):
    """Passes vectors on as they are; the index of a code is always 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = 1
        self.width = width

    def forward(self, vectors_C: Tensor) -> Quantized:
        return Quantized(vectors_C, vectors_C[..., 0].long() * 0, {})


class PlainTokenizer(ImageTokenizer):
    """An autoencoder: what it decodes are the vectors, kept where codes would be."""

    def __init__(self, config: Any) -> None:
        width = len(config.levels) if config.kind == "fsq" else config.code_width
        super().__init__(config, quantizer=Nothing(width))

    def reconstruct(self, frames_BCTHW: Tensor) -> Reconstruction:
        found = self(frames_BCTHW)
        return found._replace(video_BCTHW=found.video_BCTHW.clamp(0, 1))


class PlainTraining(TokenizerTraining):
    """The same training around nothing."""

    def build(self, here: Session, *, resume: bool) -> None:
        super().build(here, resume=resume)
        self.model = PlainTokenizer(self.config)


def run_arm(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one arm; what is there already is not done again."""
    folder = options.out / arm
    figures = folder / "figures.json"
    if figures.is_file():
        return json.loads(figures.read_text())
    store = Store.open(options.store)
    steps_per_epoch = len(store.part("train")) // options.batch
    overrides = [
        f"data.store={options.store}",
        "data.split=train",
        f"optim.epochs={-(-options.steps // steps_per_epoch)}",
        f"optim.total_batch={options.batch}",
        "run.save_every=4",
        "data.workers=0",
        *options.set,
    ]
    say = reporter(False, False, False)
    loaded = load_recipe(options.recipe, overrides)
    stage = {"plain": PlainTraining, "codes": TokenizerTraining}[arm](loaded, store, None, folder)
    resume = (folder / "checkpoints" / "last").exists()
    wall, spent = time.perf_counter(), time.process_time()
    trained = run_training(stage, folder, reporter=say, resume=resume, overwrite=not resume)
    took = {"wall": time.perf_counter() - wall, "processor": time.process_time() - spent}
    if arm == "plain":
        load.build_tokenizer = lambda recipe: PlainTokenizer(
            recipe.tokenizer
        )  # the way evaluation opens the run
    result = evaluation.evaluate_tokenizer(
        folder, reporter=say, overrides=["evaluate.segments=4", "data.workers=0"]
    )
    kept = ("psnr", "ssim", "code_use", "perplexity", "codebook_size", "videos", "pictures")
    numbers = {key: result[key] for key in kept} | {"steps": trained["steps"], "seconds": took}
    figures.write_text(json.dumps(numbers, indent=1))
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="tokenizer/small")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--arms", nargs="*", default=["codes", "plain"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {arm: run_arm(arm, options) for arm in options.arms}
    (options.out / "figures.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
