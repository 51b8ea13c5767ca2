"""Training a tokenizer: encode frames, quantise, decode, compare.

Shapes: B batch, C colours, T frames, H and W pixels, X = B * T pictures, K codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.data.normalize import to_unit
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Lesson, Part, Weights
from tatscli.engine.schedule import lr_at
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError
from tatscli.evaluation.reconstruction import code_counts, code_use, perplexity, psnr, ssim
from tatscli.nn.load import copy_weights
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.tasks.training import Stage, run_training
from tatscli.tokenizer.adversary import Adversary
from tatscli.tokenizer.image import ImageTokenizer, Reconstruction
from tatscli.tokenizer.perceptual import PerceptualLoss


def train_tokenizer(
    loaded: LoadedRecipe,
    folder: Path,
    *,
    reporter: Reporter,
    init: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the tokenizer a recipe describes, into the run folder `folder`.

    Args:
        loaded: The merged recipe, with a `tokenizer`.
        folder: The run folder.
        reporter: Speaks to the user.
        init: Tokenizer whose weights (not state) to start from.
        resume: Continue the run exactly where it stopped.
        overwrite: Replace the run.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, and the last metrics.

    Raises:
        TatsError: If store, recipe, run folder or weights cannot be used.
    """
    stage = TokenizerTraining(loaded, Store.open(loaded.recipe.data.store), init)
    return run_training(stage, folder, reporter=reporter, resume=resume, overwrite=overwrite)


class TokenizerTraining(Stage):
    """A tokenizer, and a discriminator where the recipe has one.

    Args:
        loaded: The merged recipe.
        store: The data.
        init: Tokenizer whose weights to start from.
    """

    kind = "tokenizer"
    model: ImageTokenizer

    def __init__(self, loaded: LoadedRecipe, store: Store, init: Path | str | None) -> None:
        data = loaded.recipe.data
        rows = store.part(data.split)
        super().__init__(loaded, store, rows, loaded.recipe.optim, repeats=data.repeats)
        assert loaded.recipe.tokenizer is not None
        self.config = loaded.recipe.tokenizer
        self.init = init

    def build(self, here: Session, *, resume: bool) -> None:
        """Build tokenizer, discriminator and clips.

        Raises:
            TatsError: If weights do not fit.
        """
        recipe, config = self.recipe, self.config
        self.model = ImageTokenizer(config)
        if self.init is not None and not resume:
            here.reporter.info(_start_from(self.model, self.init))
        self.adversary = Adversary(config.discriminator) if config.discriminator else None
        self.perceptual = PerceptualLoss(config.perceptual) if config.perceptual else None
        self.clips = PretrainClips(
            self.store,
            self.rows,
            recipe.data,
            patch=config.stride,
            seed=recipe.run.seed,
            follows_motion=False,
        )

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        for module in (self.model, self.adversary, self.perceptual):
            if module is not None:
                module.to(device)

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return the tokenizer's, and the discriminator's."""
        optim = self.optim
        learners = {
            "tokenizer": Learner(
                self.model,
                build_optimizer(self.model, optim),
                lr=lambda step: lr_at(step, schedule),
                clip_grad=optim.clip_grad,
            )
        }
        if self.adversary is not None:
            own = self.adversary.config.base_lr
            scale = 1.0 if own is None else own / optim.base_lr
            learners["discriminator"] = Learner(
                self.adversary,
                build_optimizer(self.adversary, optim),
                lr=lambda step: scale * lr_at(step, schedule),
                clip_grad=optim.clip_grad,
                averages=True,
            )
        self._main = learners["tokenizer"]
        return learners

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return the tokenizer, and the discriminator with its optimiser."""
        parts = super().parts(learners)
        if self.adversary is not None:
            parts["discriminator"] = Weights(self.adversary)
            parts["discriminator_optimizer"] = learners["discriminator"]
        return parts

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Name the classifier of the perceptual loss, of which a checkpoint has no copy.

        Raises:
            CheckpointError: If that of the run to resume was another.
        """
        if self.perceptual is None:
            return {}
        digest = self.perceptual.digest
        if resumed is not None and resumed.meta.get("perceptual_sha256") != digest:
            raise CheckpointError(
                f"`{resumed.path}` was trained with other `tokenizer.perceptual.weights`",
                hint="name the file it was trained with",
            )
        return {"perceptual_sha256": digest}

    def step(self, batch: Batch, generator: Generator) -> Lesson:
        """Reconstruct frames and compare; where it takes part, teach the discriminator as well."""
        true_XCHW = to_unit(batch.video_BCTHW).transpose(1, 2).flatten(0, 1)
        found: Reconstruction = self.network(true_XCHW)
        pictures_XCHW = found.pictures_XCHW.float()
        terms = {"reconstruction": self._distance(pictures_XCHW, true_XCHW), **found.losses}
        if self.config.perceptual and self.perceptual is not None:
            weight = self.config.perceptual.weight
            terms["perceptual"] = weight * self.perceptual(pictures_XCHW, true_XCHW)
        own = {}
        if self.adversary is not None and self._main.step >= self.adversary.config.start:
            weight = self.adversary.config.weight
            terms["adversarial"] = weight * self.adversary.judge(pictures_XCHW).float()
            own["loss/discriminator"] = self.adversary.loss(pictures_XCHW, true_XCHW).float()
        loss = torch.stack([*terms.values()]).sum()
        metrics = {f"loss/{name}": term for name, term in terms.items()}
        metrics |= own | self._quality(pictures_XCHW.detach(), true_XCHW, found.codes_Xhw)
        # Neither side's gradient reaches the other, so that one backward pass serves both.
        return Lesson({"loss": loss, **metrics}, loss=sum(own.values(), loss))

    def _distance(self, pictures_XCHW: Tensor, true_XCHW: Tensor) -> Tensor:
        """Compare pixels in [-1, 1]."""
        if self.config.reconstruction == "l1":
            return 2 * F.l1_loss(pictures_XCHW, true_XCHW)
        return 4 * F.mse_loss(pictures_XCHW, true_XCHW)

    @torch.no_grad()
    def _quality(
        self, pictures_XCHW: Tensor, true_XCHW: Tensor, codes_Xhw: Tensor
    ) -> dict[str, Tensor]:
        count_K = code_counts(codes_Xhw, self.model.codebook_size)
        shown_XCHW = pictures_XCHW.clamp(0, 1)
        return {
            "psnr": psnr(shown_XCHW, true_XCHW).mean(),
            "ssim": ssim(shown_XCHW, true_XCHW).mean(),
            "code_use": code_use(count_K),
            "perplexity": perplexity(count_K),
        }

    def work(self) -> float:
        """Count six operations for each weight at each position it is applied to."""
        size, config = self.recipe.data.view_size, self.config
        total, stride = 0, config.patch
        for level, width in enumerate(config.widths):
            pixels = size[0] * size[1] / (stride * 2**level) ** 2
            total += int(pixels * (4 * config.blocks + 2) * 9 * width**2)
        return 6.0 * self.recipe.data.frames * total


def _start_from(tokenizer: nn.Module, init: Path | str) -> str:
    """Take the weights of another tokenizer, and say so.

    Raises:
        CheckpointError: If it is none, or they do not fit.
    """
    checkpoint = find_checkpoint(Path(init))
    if checkpoint.kind != "tokenizer":
        raise CheckpointError(f"`{init}` is a {checkpoint.kind} run, not a tokenizer")
    copy_weights(tokenizer, checkpoint.tensors("model"), checkpoint)
    return f"the tokenizer starts from `{checkpoint.path}`"
