"""Training a tokenizer: encode frames, quantise, decode, compare.

Shapes: B batch, C colours, T frames, H and W pixels, X = B * T pictures, K codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.data.normalize import to_unit
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.parallel import Copies
from tatscli.engine.part import Lesson, Part, Weights
from tatscli.engine.schedule import lr_at
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError, UsageError
from tatscli.evaluation.reconstruction import code_counts, code_use, perplexity, psnr, ssim
from tatscli.nn.averaged import Following, copies_in
from tatscli.nn.load import copy_weights
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import AdaptiveTokenizer, Recipe
from tatscli.store.reader import Store
from tatscli.system.cost import count_flops
from tatscli.tasks.lengths import refuse_short
from tatscli.tasks.training import Stage, run_training
from tatscli.tasks.training_pictures import TokenizerPictures
from tatscli.tokenizer.adversary import Adversary
from tatscli.tokenizer.base import Reconstruction, TrainedTokenizer, pictures_of
from tatscli.tokenizer.build import build_tokenizer
from tatscli.tokenizer.perceptual import PerceptualLoss
from tatscli.visualize.text import Picture


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
        init: Tokenizer to initialise from; optimiser state is not loaded.
        resume: Continue the run exactly where it stopped.
        overwrite: Replace the run.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, and the last metrics.

    Raises:
        TatsError: If store, recipe, run folder or weights cannot be used.
    """
    stage = TokenizerTraining(loaded, Store.open(loaded.recipe.data.store), init, folder)
    return run_training(stage, folder, reporter=reporter, resume=resume, overwrite=overwrite)


class TokenizerTraining(Stage):
    """A tokenizer, with a discriminator if the recipe has one.

    Args:
        loaded: The merged recipe.
        store: The data.
        init: Tokenizer to initialise from.
        folder: The run folder, for pictures.
    """

    kind = "tokenizer"
    networks = ("model", "adversary", "perceptual")
    model: TrainedTokenizer
    _main: Learner | None = None

    def __init__(
        self, loaded: LoadedRecipe, store: Store, init: Path | str | None, folder: Path
    ) -> None:
        data = loaded.recipe.data
        rows = store.part(data.split)
        refuse_short(store, rows, data.sampling, data.frames)
        super().__init__(loaded, store, rows, loaded.recipe.optim, repeats=data.repeats)
        assert loaded.recipe.tokenizer is not None
        self.config = loaded.recipe.tokenizer
        self.init = init
        self.folder = folder

    def build(self, here: Session, *, resume: bool) -> None:
        """Build tokenizer, discriminator and clips.

        Raises:
            TatsError: If weights do not fit, or `train: decoder` has no trained encoder.
        """
        recipe, config = self.recipe, self.config
        self.model = build_tokenizer(recipe)
        if self.init is not None and not resume:
            here.reporter.info(_start_from(self.model, self.init))
        self.average: Following[TrainedTokenizer] | None = None
        if isinstance(config, AdaptiveTokenizer):
            self._freeze(config, resume=resume)
            if config.ema is not None:
                self.average = Following(self.model, config.ema)
        self.adversary = build_adversary(recipe, self.model)
        self.perceptual = PerceptualLoss(config.perceptual) if config.perceptual else None
        self.clips = PretrainClips(
            self.store,
            self.rows,
            recipe.data,
            patch=config.stride,
            seed=recipe.run.seed,
            follows_motion=False,
        )
        self.drawing = TokenizerPictures(self.folder / "pictures", self.store, self.rows, recipe)

    def _freeze(self, config: AdaptiveTokenizer, *, resume: bool) -> None:
        """Freeze everything but the decoder, if the recipe says so.

        Raises:
            UsageError: If there is no trained encoder, or it was trained on other windows.
        """
        if config.train == "all":
            return
        if not resume and self.init is None:
            raise UsageError(
                "`tokenizer.train: decoder` needs a trained encoder",
                hint="name the tokenizer of the first stage with `--init RUN`",
            )
        if not resume and self.init is not None:
            first = find_checkpoint(Path(self.init)).recipe.data.frames
            if first != self.recipe.data.frames:
                raise UsageError(
                    f"`data.frames: {self.recipe.data.frames}` with `tokenizer.train: decoder`: "
                    f"`{self.init}` was trained on windows of {first} frames, and its codes would "
                    "change with others",
                    hint=f"set `data.frames={first}`",
                )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("decoder."))

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        average = None if self.average is None else self.average.average
        for module in (self.model, average, self.adversary, self.perceptual):
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

    def copies(self) -> Copies:
        """Return the tokenizer's average."""
        return copies_in(None if self.average is None else self.average.average)

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return the tokenizer, averaged where the recipe says so, and the discriminator with its
        optimiser."""
        parts = super().parts(learners)
        if self.average is not None:
            parts |= self.average.parts()
        if self.adversary is not None:
            parts["discriminator"] = Weights(self.adversary)
            parts["discriminator_optimizer"] = learners["discriminator"]
        return parts

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Return the digest of the perceptual loss's classifier, which checkpoints do not contain.

        Raises:
            CheckpointError: If the run to resume was trained with another.
        """
        if self.perceptual is None:
            return {}
        digest = self.perceptual.digest
        if resumed is not None and resumed.meta.get("perceptual_sha256") != digest:
            raise CheckpointError(
                f"`{resumed.path}` was trained with different `tokenizer.perceptual.weights`",
                hint="use the file that it was trained with",
            )
        return {"perceptual_sha256": digest}

    def step(self, batch: Batch, draws: Draws) -> Lesson:
        """Compute reconstruction and adversarial losses, and the discriminator's own."""
        true_BCTHW = to_unit(batch.video_BCTHW)
        found: Reconstruction = self.network(true_BCTHW)
        video_BCTHW = found.video_BCTHW.float()
        distance_B = self._distance(video_BCTHW, true_BCTHW)
        terms = {"reconstruction": distance_B.mean(), **found.losses}
        if self.config.perceptual and self.perceptual is not None:
            weight = self.config.perceptual.weight
            distance = self.perceptual(pictures_of(video_BCTHW), pictures_of(true_BCTHW))
            terms["perceptual"] = weight * distance
        own = {}
        judge = self.adversary
        if judge is not None and (self._main is None or self._main.step >= judge.config.start):
            settings = judge.config
            made, true = (
                one if self.model.whole else pictures_of(one) for one in (video_BCTHW, true_BCTHW)
            )
            terms["adversarial"] = settings.weight * judge.judge(made).float()
            own["loss/discriminator"] = judge.loss(made, true).float()
            if settings.r1:
                own["loss/r1"] = settings.r1 * judge.slope(true)
        loss = torch.stack([*terms.values()]).sum()
        metrics = {f"loss/{name}": term for name, term in terms.items()}
        metrics |= own | self._quality(found, true_BCTHW)
        # Neither loss has gradients for the other's network, so one backward pass serves both.
        own_B = distance_B.detach()
        return Lesson({"loss": loss, **metrics}, loss=sum(own.values(), loss), by_sample=own_B)

    def _distance(self, video_BCTHW: Tensor, true_BCTHW: Tensor) -> Tensor:
        """Return the reconstruction error of each video on pixels in [-1, 1], (B,)."""
        if self.config.reconstruction == "l1":
            return 2 * F.l1_loss(video_BCTHW, true_BCTHW, reduction="none").flatten(1).mean(dim=1)
        return 4 * F.mse_loss(video_BCTHW, true_BCTHW, reduction="none").flatten(1).mean(dim=1)

    @torch.no_grad()
    def _quality(self, found: Reconstruction, true_BCTHW: Tensor) -> dict[str, Tensor]:
        size = self.model.codebook_size
        count_K = code_counts(found.codes_Bthw, size, found.kept_Bthw)
        shown_XCHW = pictures_of(found.video_BCTHW.float().clamp(0, 1))
        true_XCHW = pictures_of(true_BCTHW)
        numbers = {
            "psnr": psnr(shown_XCHW, true_XCHW).mean(),
            "ssim": ssim(shown_XCHW, true_XCHW).mean(),
            "code_use": code_use(count_K),
            "perplexity": perplexity(count_K),
        }
        if found.scores_Bthw is not None:
            others_BN = found.scores_Bthw[:, 1:].flatten(1)
            spread_B = others_BN.std(dim=1, correction=0)
            numbers["score"] = others_BN.mean()
            numbers["score_contrast"] = (spread_B / others_BN.mean(dim=1).clamp(min=1e-9)).mean()
        return numbers

    def pictures(self, epoch: int, here: Session) -> dict[str, Picture]:
        """Draw, after some epochs, the reconstruction of a video."""
        if not self.drawing.due(epoch):
            return {}
        shown = self.model if self.average is None else self.average.average.network
        return self.drawing.draw(shown, epoch, here)

    def modules(self) -> dict[str, nn.Module]:
        """Return tokenizer, discriminator and the classifier of the perceptual loss."""
        beside = {"discriminator": self.adversary, "perceptual": self.perceptual}
        return {"": self.model} | {name: one for name, one in beside.items() if one is not None}

    def work(self) -> float:
        """Count the operations of a clip, forward and twice as many backward."""
        return 3.0 * tokenizer_flops(self.recipe)


def build_adversary(recipe: Recipe, model: TrainedTokenizer) -> Adversary | None:
    """Build the discriminator of a recipe, if it has one."""
    config = recipe.tokenizer.discriminator if recipe.tokenizer else None
    return None if config is None else Adversary(config, dims=3 if model.whole else 2)


def tokenizer_flops(recipe: Recipe) -> int:
    """Count the floating-point operations of a forward pass over one clip."""
    with torch.device("meta"):
        model = build_tokenizer(recipe).eval()
        frames_BCTHW = torch.zeros(1, 3, recipe.data.frames, *recipe.data.view_size)
        return count_flops(lambda: model(frames_BCTHW))


def _start_from(tokenizer: nn.Module, init: Path | str) -> str:
    """Load the weights of another tokenizer, and say so.

    Raises:
        CheckpointError: If it is not a tokenizer, or the weights do not fit.
    """
    checkpoint = find_checkpoint(Path(init))
    if checkpoint.kind != "tokenizer":
        raise CheckpointError(f"`{init}` is a {checkpoint.kind} run, not a tokenizer")
    copy_weights(tokenizer, checkpoint.tensors("model"), checkpoint)
    return f"the tokenizer starts from `{checkpoint.path}`"
