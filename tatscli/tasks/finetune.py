"""Fine-tuning: action recognition on top of a pretrained encoder, or from scratch.

Shapes: B batch, C channels, T frames, L classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from tatscli.console import Reporter
from tatscli.data.augment import Mix
from tatscli.data.batch import Batch
from tatscli.data.dataset import EvalViews, FinetuneClips
from tatscli.data.normalize import standardize, to_unit
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.loop import Training, train
from tatscli.engine.optim import build_optimizer
from tatscli.engine.session import session
from tatscli.errors import DataError, UsageError
from tatscli.evaluation.scores import merge_views, top_accuracy
from tatscli.evaluation.views import score_views
from tatscli.nn.classifier import Classifier
from tatscli.nn.vit import build_encoder
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.tasks.build import load_encoder
from tatscli.tasks.pretrain import pretrain_folder
from tatscli.tasks.training import begin_run, checkpoint_meta, data_stream, schedule_rows


def finetune(
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    init: Path | str | None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a classifier on the labelled videos of the recipe's store.

    Args:
        loaded: The merged recipe.
        reporter: Speaks to the user.
        init: Run or checkpoint whose encoder to start from; None starts from scratch.
        out: Run folder; by default `runs/<recipe>-finetune` (or `-scratch`).
        resume: Continue the run in `out` exactly where it stopped.
        overwrite: Replace the run in `out`.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, `loss`, and where the recipe has a `val_split`,
        `val_top1` of the last pass and `best_score` over all passes.

    Raises:
        TatsError: If store, labels, recipe, run folder or weights cannot be used.
    """
    recipe = loaded.recipe
    settings = recipe.finetune
    folder = Path(out) if out else finetune_folder(loaded, scratch=init is None)
    store = Store.open(recipe.data.store)
    rows = labelled(store, settings.split)
    val_rows = labelled(store, settings.val_split) if settings.val_split else []
    with session(recipe.run, reporter) as here:
        schedule = derive_schedule(
            settings.optim, videos=len(rows), repeats=settings.repeats, world=here.world.size
        )
        model = build_classifier(recipe, classes=len(store.class_names))
        origin = None
        if init is not None and not resume:
            start = find_checkpoint(Path(init))
            count = load_encoder(model.encoder, start)
            here.reporter.info(f"the encoder starts from `{start.path}` ({count} tensors)")
            origin = str(start.path)
        elif not resume:
            here.reporter.info("the encoder starts from scratch")
        checkpoint = begin_run(
            here, folder, loaded, schedule, store, resume=resume, overwrite=overwrite
        )
        if checkpoint is not None:
            origin = checkpoint.meta["init"]
        for name, value in schedule_rows(schedule):
            here.reporter.detail(f"{name}: {value}")
        model.to(here.device)
        clips = FinetuneClips(store, rows, recipe.data, settings, seed=recipe.run.seed)
        val_views = EvalViews(
            store, val_rows, recipe.data, sampling=settings.sampling or recipe.data.sampling
        )
        mix = Mix(settings.augment, classes=len(store.class_names))
        forward, synced = here.wrap(model, recipe.run)

        def step(batch: Batch, generator: Generator, done: int) -> tuple[Tensor, dict[str, float]]:
            video_BCTHW = standardize(to_unit(batch.video_BCTHW), recipe.data.mean, recipe.data.std)
            video_BCTHW, target_BL = mix(video_BCTHW, batch.label_B, generator=generator)
            logits_BL = forward(video_BCTHW).float()
            loss = -(target_BL * logits_BL.log_softmax(dim=-1)).sum(dim=-1).mean()
            return loss, {}

        def score(epoch: int) -> tuple[float, dict[str, float]] | None:
            last = epoch == settings.optim.epochs
            if settings.val_split is None or (epoch % settings.val_every and not last):
                return None
            scored = score_views(model, val_views, recipe, here)
            top1 = top_accuracy(merge_views(scored), 1)
            return top1, {"val_top1": top1}

        training = Training(
            model=model,
            step=step,
            optimizer=build_optimizer(
                model,
                settings.optim,
                layer_of=model.layer_of,
                layers=model.layers,
                layer_decay=settings.optim.layer_decay,
            ),
            schedule=schedule,
            batches=data_stream(clips, schedule, recipe, store, here),
            run=recipe.run,
            clip_grad=settings.optim.clip_grad,
            folder=folder,
            meta=checkpoint_meta(
                "finetuned",
                loaded,
                store,
                class_names=store.class_names,
                init=origin,
            ),
            world=here.world,
            device=here.device,
            dtype=here.dtype,
            reporter=here.reporter,
            synced=synced,
            score=score,
        )
        if checkpoint is not None:
            training.restore(checkpoint)
            here.reporter.info(f"resuming after step {training.done} of {schedule.total_steps}")
        result = train(training)
    last = find_checkpoint(folder).path if here.world.main else folder
    return {"run": str(folder), "checkpoint": str(last), **result}


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
    """Work out where a fine-tuning starts and where it goes.

    Args:
        loaded: The recipe.
        run: The run folder it came from, if it did.
        init: Weights named by the user.
        scratch: Start from random weights.
        resume: Continue; a fine-tuning run then means itself.

    Returns:
        The weights to start from, None for random ones, and the run folder.

    Raises:
        UsageError: If `--init` and `--scratch` are both given, or there is nothing to start from.
    """
    if scratch and init is not None:
        raise UsageError("`--init` and `--scratch` exclude each other")
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


def build_classifier(recipe: Recipe, *, classes: int) -> Classifier:
    """Build the classifier a recipe describes, with fresh weights."""
    settings = recipe.finetune
    encoder = build_encoder(recipe.model, recipe.grid, drop_path=settings.drop_path)
    return Classifier(
        encoder, classes, dropout=settings.head_dropout, head_scale=settings.head_scale
    )


def labelled(store: Store, split: str) -> list[int]:
    """Return the manifest rows of a split, all of which must carry a class.

    Raises:
        DataError: If the store has no classes, or a row of the split no label.
    """
    rows = store.part(split)
    bare = [row for row in rows if store.rows[row].label is None]
    hint = "labels come from class sub-folders, or from `tats prepare --annotations FILE`"
    if bare:
        raise DataError(
            f"{len(bare)} of {len(rows)} videos of split `{split}` in `{store.path}` "
            f"have no label, `{store.rows[bare[0]].id}` for one",
            hint=hint,
        )
    if len(store.class_names) < 2:
        raise DataError(
            f"`{store.path}` has {len(store.class_names)} classes; telling apart needs two",
            hint=hint,
        )
    return rows
