"""From a recipe to objects: mask x head x targets around an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.masking import build_masker
from tatscli.masking.base import Masker
from tatscli.masking.selection import build_selection
from tatscli.masking.selection.base import Selection
from tatscli.nn.autoencoder import MaskedAutoencoder
from tatscli.nn.heads import build_head
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.targets import build_target
from tatscli.targets.base import Target


@dataclass(frozen=True, slots=True)
class System:
    """One masked-video-modelling system.

    Attributes:
        autoencoder: Encoder and head, trained together.
        masker: Chooses what is seen; a learned one owns its optimiser.
        selection: Chooses which of the hidden tokens are predicted.
        targets: What hidden tokens are compared with, in the recipe's order.
    """

    autoencoder: MaskedAutoencoder
    masker: Masker
    selection: Selection
    targets: list[Target]

    @property
    def encoder(self) -> Encoder:
        """The ViT that downstream tasks keep."""
        return self.autoencoder.encoder

    @property
    def needs_embeddings(self) -> bool:
        """Whether mask or selection reads the patch embeddings of all tokens."""
        return self.masker.needs_embeddings or self.selection.needs_embeddings

    @property
    def follows_motion(self) -> bool:
        """Whether mask or selection reads the clips' motion."""
        return self.masker.needs_motion or self.selection.needs_motion

    def to(self, device: torch.device | str) -> System:
        """Move every part to a device."""
        for part in (self.autoencoder, self.masker, self.selection, *self.targets):
            part.to(device)
        return self

    def eval(self) -> System:
        """Put every part in evaluation mode."""
        for part in (self.autoencoder, self.masker, self.selection, *self.targets):
            part.eval()
        return self


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A checkpoint and the recipe it was trained with."""

    recipe: Recipe
    checkpoint: Checkpoint


def build_system(recipe: Recipe, *, lr_scale: float = 1.0) -> System:
    """Build the system a recipe describes, with fresh weights."""
    model = recipe.model
    encoder = build_encoder(model, recipe.grid)
    targets = [
        build_target(config, grid=recipe.grid, tubelet=model.tubelet, patch=model.patch)
        for config in recipe.targets
    ]
    widths = [target.width for target in targets]
    head = build_head(recipe.head, encoder=encoder, widths=widths)
    masker = build_masker(recipe.mask, grid=recipe.grid, width=encoder.width, lr_scale=lr_scale)
    selection = build_selection(recipe.predict, grid=recipe.grid, predicted=masker.predicted)
    return System(MaskedAutoencoder(encoder, head), masker, selection, targets)


def open_checkpoint(path: Path | str, *, prefer: str = "last") -> LoadedRun:
    """Find the checkpoint that `path` means and read its recipe.

    Raises:
        CheckpointError: If there is none.
    """
    checkpoint = find_checkpoint(Path(path), prefer=prefer)
    return LoadedRun(Recipe.model_validate(checkpoint.meta["recipe"]), checkpoint)


def load_system(
    path: Path | str, *, device: torch.device | str = "cpu"
) -> tuple[LoadedRun, System]:
    """Rebuild a pretrained system with its weights, ready to look at.

    Raises:
        CheckpointError: If `path` holds no pretraining checkpoint.
    """
    run = open_checkpoint(path)
    if run.checkpoint.kind != "pretrained":
        raise CheckpointError(
            f"`{path}` is a {run.checkpoint.kind} run: it has an encoder and a classifier, "
            "but no mask or decoder",
            hint="give the pretraining run it started from",
        )
    system = build_system(run.recipe)
    system.autoencoder.load_state_dict(run.checkpoint.tensors("model"))
    restore_masker(system.masker, run.checkpoint)
    return run, system.to(device).eval()


def masker_tensors(masker: Masker) -> dict[str, dict[str, Tensor]]:
    """Return the checkpoint file of a learned masker: weights and what it needs to resume."""
    tensors = {f"weights/{name}": value for name, value in masker.state_dict().items()}
    tensors |= {f"training/{name}": value for name, value in masker.training_state().items()}
    return {"masker": tensors} if tensors else {}


def restore_masker(masker: Masker, checkpoint: Checkpoint) -> None:
    """Put back what `masker_tensors` returned; fixed maskers have nothing to restore."""
    if not masker_tensors(masker):
        return
    tensors = checkpoint.tensors("masker")
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "training": {}}
    for name, value in tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = value
    try:
        masker.load_state_dict(parts["weights"])
    except RuntimeError as error:
        raise CheckpointError(
            f"the sampler in `{checkpoint.path}` does not fit the mask of this tats: "
            f"{str(error).splitlines()[-1].strip()}",
            hint="continue the run with the version that began it, or start anew with `--init`",
        ) from error
    masker.load_training_state(parts["training"])


def load_encoder(encoder: Encoder, checkpoint: Checkpoint) -> int:
    """Copy a checkpoint's encoder weights, pretrained or fine-tuned; every tensor must match.

    Returns:
        The number of tensors copied.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    given = {
        name.removeprefix("encoder."): value
        for name, value in checkpoint.tensors("model").items()
        if name.startswith("encoder.")
    }
    copy_weights(encoder, given, checkpoint)
    return len(given)


def copy_weights(module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Load `given` into `module`, every tensor of both.

    Raises:
        CheckpointError: If names or shapes differ; the message counts and names them.
    """
    wanted = module.state_dict()
    wrong = sorted(wanted.keys() ^ given.keys())
    wrong += [n for n in wanted.keys() & given.keys() if wanted[n].shape != given[n].shape]
    if wrong:
        fitting = len(wanted) - len([name for name in wrong if name in wanted])
        raise CheckpointError(
            f"the weights of `{checkpoint.path}` do not fit: {fitting} of {len(wanted)} tensors "
            f"match; the first that does not is `{wrong[0]}`",
            hint="`model` in the recipe must be that of the run: "
            f"{checkpoint.meta['recipe']['model']}",
        )
    module.load_state_dict(given)
