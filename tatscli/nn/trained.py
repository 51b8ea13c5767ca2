"""Trained networks by their run: the one place that builds what a checkpoint holds."""

from __future__ import annotations

import torch

from tatscli.errors import CheckpointError
from tatscli.nn.classifier import Classifier, build_classifier, groups_of
from tatscli.nn.load import LoadedRun, copy_weights, load_encoder, refuse_tokenizer
from tatscli.nn.vit import Encoder, build_encoder


def load_network(run: LoadedRun) -> Classifier | Encoder:
    """Rebuild the classifier of a fine-tuned run, or the encoder of a pretrained one.

    torch's global random state is left as it was.

    Raises:
        CheckpointError: If it is a tokenizer, or the weights do not fit.
    """
    refuse_tokenizer(run.checkpoint)
    if run.checkpoint.kind == "finetuned":
        return load_classifier(run)
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(run.recipe.model, run.recipe.grid)
    load_encoder(encoder, run.checkpoint)
    return encoder


def load_classifier(run: LoadedRun) -> Classifier:
    """Rebuild a classifier with its weights, for the classes it was trained on.

    torch's global random state is left as it was.

    Args:
        run: Its checkpoint, and the recipe by which it is built; positions come onto its grid.

    Raises:
        CheckpointError: If it is no fine-tuned run, or the weights do not fit.
    """
    checkpoint = run.checkpoint
    refuse_no_classifier(run)
    with torch.random.fork_rng(devices=[]):
        model = build_classifier(
            run.recipe, classes=len(class_names_of(run)), groups=groups_of(checkpoint.meta)
        )
    copy_weights(model, checkpoint.tensors("model"), checkpoint)
    return model


def class_names_of(run: LoadedRun) -> list[str]:
    """Return the names of a run's classes; of a pretrained one there are none."""
    return list(run.checkpoint.meta.get("class_names") or [])


def refuse_no_classifier(run: LoadedRun) -> None:
    """Refuse a run that cannot name classes.

    Raises:
        CheckpointError: If so.
    """
    checkpoint = run.checkpoint
    refuse_tokenizer(checkpoint)
    if checkpoint.kind != "finetuned":
        raise CheckpointError(
            f"`{checkpoint.path}` is a {checkpoint.kind} run: it has no classifier to predict with",
            hint="train one with `tats finetune RUN`; `tats embed` takes its features",
        )
    if not class_names_of(run):
        raise CheckpointError(
            f"`{checkpoint.path}` does not say what its classes are called",
            hint="`class_names` in its `meta.json` is a list of names in the order of the scores",
        )
