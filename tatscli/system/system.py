"""`System`: mask x head x targets around an encoder, and the one step that all of it takes.

Shapes: B batch, C channels, T frames, H and W pixels, K visible, M predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tatscli.data.batch import Batch
from tatscli.data.clip import Clip, ClipForm
from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.engine.device import full_precision
from tatscli.heads import build_head
from tatscli.heads.base import Auxiliary, HeadOutput
from tatscli.masking import build_masker
from tatscli.masking.base import Masker
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict import build_predict
from tatscli.masking.predict.base import PredictRule
from tatscli.nn.frozen import Frozen
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.store.codes import clips_key
from tatscli.system.autoencoder import MaskedAutoencoder
from tatscli.targets import build_target
from tatscli.targets.base import Target


@dataclass(frozen=True, slots=True)
class Errors:
    """Predictions and errors of a system on a batch.

    Attributes:
        plan: The visible and the predicted tokens.
        predictions: One (B, M, C) per target.
        by_target: Error of each predicted token, (B, M) in float32, by the target's name.
        error_BM: Their sum, each times the target's weight: the reward of a learned mask.
        auxiliary: The head's own errors.
    """

    plan: MaskPlan
    predictions: list[Tensor]
    by_target: Mapping[str, Tensor]
    error_BM: Tensor
    auxiliary: Mapping[str, Auxiliary]

    @property
    def loss(self) -> Tensor:
        """The loss that training minimises."""
        loss = self.error_BM.mean()
        for error, weight in self.auxiliary.values():
            loss = loss + weight * error
        return loss

    @property
    def metrics(self) -> dict[str, Tensor]:
        """`loss/<target>` and `loss/<auxiliary error>`, before they are weighted."""
        targets = {f"loss/{name}": error.mean() for name, error in self.by_target.items()}
        return targets | {f"loss/{name}": one.error for name, one in self.auxiliary.items()}


@dataclass(frozen=True, slots=True)
class System:
    """One masked-video-modelling system.

    Attributes:
        form: How clips are cut into cubes.
        autoencoder: Encoder and head, trained together.
        masker: Chooses the visible tokens.
        predict: Chooses which of the hidden tokens are predicted, as `predict` says.
        targets: What hidden tokens are compared with, by name, in the recipe's order.
        network: Called instead of `autoencoder`, such as the wrapper of several processes; takes
            and returns the same.
    """

    form: ClipForm
    autoencoder: MaskedAutoencoder
    masker: Masker
    predict: PredictRule
    targets: Mapping[str, Target]
    network: Callable[[Clip, MaskPlan], HeadOutput] | None = None

    @property
    def encoder(self) -> Encoder:
        """The ViT that downstream tasks keep."""
        return self.autoencoder.encoder

    @property
    def needs_embeddings(self) -> bool:
        """Whether mask or `predict` rule reads the patch embeddings of all tokens."""
        return self.masker.needs_embeddings or self.predict.needs_embeddings

    @property
    def follows_motion(self) -> bool:
        """Whether mask, `predict` rule or a target reads the clips' motion."""
        readers = (self.masker, self.predict, *self.targets.values())
        return any(one.needs_motion for one in readers)

    @property
    def cached_codes(self) -> list[str]:
        """Names of the codes that `predict` rule and targets read from the store."""
        readers = (self.predict, *self.targets.values())
        names = (getattr(one, "cached", None) for one in readers)
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.encoder.patch_embed.proj.weight.device

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All modules."""
        return (self.form, self.autoencoder, self.masker, self.predict, *self.targets.values())

    def to(self, device: torch.device | str) -> System:
        """Move every part to a device."""
        for part in self.parts:
            part.to(device)
        return self

    def train(self, mode: bool = True) -> System:
        """Put every part in training mode."""
        for part in self.parts:
            part.train(mode)
        return self

    def eval(self) -> System:
        """Put every part in evaluation mode."""
        return self.train(False)

    def frozen(self) -> list[Frozen]:
        """Return the frozen networks inside the parts: a checkpoint names them, it has no copy."""
        found = (one for part in self.parts for one in part.modules() if isinstance(one, Frozen))
        return list(dict.fromkeys(found))

    def follow(self) -> None:
        """Tell the targets that the encoder has new weights."""
        for target in self.targets.values():
            target.follow(self.encoder)

    def called(self, network: Callable[[Clip, MaskPlan], HeadOutput]) -> System:
        """Return this system with another network in place of the bare autoencoder."""
        return replace(self, network=network)

    def clip(
        self,
        video_BCTHW: Tensor,
        *,
        motion: MotionField | None = None,
        label_B: Tensor | None = None,
        row_B: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
    ) -> Clip:
        """Make a clip of a uint8 video; motion is kept where it is followed."""
        return self.form.clip(
            video_BCTHW,
            motion=motion if self.follows_motion else None,
            label_B=label_B,
            row_B=row_B,
            codes=codes,
            embed=self._embed,
        )

    def clip_of(self, batch: Batch) -> Clip:
        """Make a clip of a batch."""
        return self.clip(
            batch.video_BCTHW,
            motion=batch.motion,
            label_B=batch.label_B,
            row_B=batch.row_B,
            codes=batch.codes,
        )

    def _embed(self, cubes_BNP: Tensor) -> Tensor:
        """Embed all tokens; without a graph, unless the masker's loss is to reach the encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.masker.reaches_encoder):
            return self.encoder.embed(cubes_BNP)

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Choose which tokens are visible and which are predicted."""
        plan = self.masker.plan(clip, draws)
        return self.predict.select(plan, clip, draws)

    def errors(self, clip: Clip, draws: Draws) -> Errors:
        """Mask a batch, predict, and compare: what training optimises and pictures draw."""
        plan = self.plan(clip, draws)
        output = (self.network or self.autoencoder)(clip, plan)
        error_BM = torch.zeros_like(plan.predict_BM, dtype=torch.float32)
        by_target = {}
        for (name, target), prediction_BMC in zip(
            self.targets.items(), output.predictions, strict=True
        ):
            # Autocast would round both sides of the difference.
            with nullcontext() if target.rounds else full_precision(clip.device):
                values = target.of(clip, plan.predict_BM)
            with full_precision(clip.device):
                by_target[name] = target.error(prediction_BMC, values)
            error_BM = error_BM + target.weight * by_target[name]
        return Errors(plan, output.predictions, by_target, error_BM, output.auxiliary)


def build_system(recipe: Recipe, *, encoder: Encoder | None = None) -> System:
    """Build the system a recipe describes, with fresh weights, perhaps around a given encoder."""
    form = build_form(recipe)
    encoder = build_encoder(recipe.model, recipe.grid) if encoder is None else encoder
    targets: dict[str, Target] = {}
    for place, config in enumerate(recipe.targets):
        # Further targets of a kind are numbered.
        alike = sum(before.kind == config.kind for before in recipe.targets[:place])
        name = f"{config.kind}_{alike + 1}" if alike else config.kind
        targets[name] = build_target(config, form=form)
        targets[name].follow(encoder)
    predicts = [target.predicts for target in targets.values()]
    head = build_head(recipe.head, encoder=encoder, predicts=predicts)
    masker = build_masker(recipe.mask, grid=recipe.grid, width=encoder.width)
    predict = build_predict(recipe.resolved_predict, form=form, predicted=masker.predicted)
    return System(form, MaskedAutoencoder(encoder, head), masker, predict, targets)


def build_form(recipe: Recipe) -> ClipForm:
    """Build how a recipe's clips are cut."""
    model, data = recipe.model, recipe.data
    return ClipForm(
        recipe.grid,
        model.tubelet,
        model.patch,
        mean=data.mean,
        std=data.std,
        fixed=clips_key(data),
    )
