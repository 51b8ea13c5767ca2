"""Where a fine-tuning starts, and where it lies."""

from __future__ import annotations

from pathlib import Path

from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import UsageError
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks.pretrain import pretrain_folder


def finetune_folder(
    loaded: LoadedRecipe, run: Path | None = None, *, scratch: bool = False
) -> Path:
    """Return the folder of a fine-tuning: beside the pretraining run, given or the recipe's own."""
    suffix = "scratch" if scratch else "finetune"
    base = run or pretrain_folder(loaded)
    if base.name in ("", ".."):
        base = base.resolve()
    return base.with_name(f"{base.name}-{suffix}")


def choose_start(
    loaded: LoadedRecipe, run: Path | None, *, init: Path | None, scratch: bool, resume: bool
) -> tuple[Path | None, Path]:
    """Determine initial weights and run folder of a fine-tuning.

    Args:
        loaded: The recipe.
        run: The run folder that the recipe came from, if any.
        init: Weights named by the user.
        scratch: Start from random weights.
        resume: Continue a run; a fine-tuning run then means itself.

    Returns:
        The weights to start from, None for random ones, and the run folder.

    Raises:
        UsageError: If `--init` and `--scratch` are both given, or there is nothing to start from.
    """
    if scratch and init is not None:
        raise UsageError("`--init` and `--scratch` cannot be combined")
    if resume and run is not None and find_checkpoint(run).kind == "finetuned":
        return None, run
    folder = finetune_folder(loaded, run, scratch=scratch)
    if scratch or resume:
        return None, folder
    start = init or run or pretrain_folder(loaded)
    if init is None and not (start / "checkpoints").is_dir():
        raise UsageError(
            f"there is no pretrained run in `{start}` to start from",
            hint=f"run `tats pretrain {loaded.name}` first, name a run with `--init`, "
            "or train from random weights with `--scratch`",
        )
    return start, folder
