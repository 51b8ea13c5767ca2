"""Exporting a trained network for other programs: pixels in, class scores or features out.

Shapes: B batch, T frames, H and W pixels, C colours, N tokens, D width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tatscli import __version__
from tatscli.console import Reporter
from tatscli.data.normalize import standardized
from tatscli.engine.checkpoint import Checkpoint
from tatscli.errors import RecipeError, UsageError
from tatscli.evaluation.features import PooledFeatures
from tatscli.files import refuse_existing, refuse_unwritable
from tatscli.nn.load import LoadedRun, positions_moved, refuse_tokenizer
from tatscli.nn.onnx import Graph, need_onnx, publish_onnx, write_onnx
from tatscli.nn.trained import class_names_of, load_classifier
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import Recipe
from tatscli.tasks.evaluate import open_subject
from tatscli.tasks.frozen import frozen_encoder

Pixels = Literal["uint8", "float"]

_INPUTS = {
    "uint8": "uint8 RGB frames (batch, frames, height, width, 3); the file standardises them",
    "float": "float32 RGB (batch, 3, frames, height, width): (value / 255 - mean) / std",
}
_PREPROCESSING = (
    "frames as `sampling` says, the middle clip of the video; of each frame the largest crop with "
    "the aspect of `size`, in the centre, resized to `size`, bilinear "
)
_RESIZE = {"antialias": "with antialiasing", "videomae": "without antialiasing"}


@dataclass(frozen=True, slots=True)
class Exportable:
    """A network to export.

    Attributes:
        network: Maps standardised video (B, C, T, H, W) to one or several tensors; on the CPU.
        outputs: Description of each output, by name.
        classes: Class names; None for an encoder.
    """

    network: nn.Module
    outputs: dict[str, str]
    classes: list[str] | None = None


def export_onnx(
    path: Path | str,
    *,
    reporter: Reporter,
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    features: bool = False,
    pixels: Pixels = "uint8",
    opset: int = 18,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the classifier of a fine-tuned run, or the encoder of any run, as an ONNX file.

    The file is compared with torch in onnxruntime at two batch sizes and is only kept if it passes;
    without onnxruntime it is written unchecked.

    Args:
        path: Run or checkpoint folder.
        reporter: Speaks to the user.
        overrides: Recipe keys to change, such as `data.frames=32`.
        prefer: Which checkpoint of a run to take.
        features: Export the encoder of a fine-tuned run instead of its classifier.
        pixels: The input: `uint8` frames as decoders give them, which the file standardises, or
            `float` video that is standardised already.
        opset: Version of ONNX's operators.
        out: The file; by default `model.onnx` in the run, or `encoder.onnx` for an encoder, which
            is replaced if it exists.
        overwrite: Replace `out`.

    Returns:
        `out`, `files`, `bytes`, `kind`, `opset`, `checked`, `max_difference` (None where it was not
        checked) and `metadata`.

    Raises:
        UsageError: If the extra `onnx` is missing, or `out` or `opset` cannot be used.
        RecipeError: If the recipe uses something that cannot be exported.
        TatsError: If the run cannot be used, or the file's outputs differ from torch's.
    """
    need_onnx()
    if out is not None and Path(out).is_dir():
        raise UsageError(f"`{out}` is a folder", hint="name a file, such as `model.onnx`")
    if out is not None and Path(out).suffix != ".onnx":
        raise UsageError(f"cannot write `{out}`: its suffix must be .onnx")
    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
    subject = open_subject(path, overrides, prefer=prefer, untrained=False)
    recipe, checkpoint = subject.recipe, subject.checkpoint
    assert checkpoint is not None
    what = open_exportable(checkpoint, recipe, features=features)
    if what.classes is None and not features:
        reporter.info(f"a {checkpoint.kind} run has no classifier: exporting its encoder")
    for remark in checkpoint.remarks:
        reporter.info(f"weights: {remark}")
    if moved := positions_moved(checkpoint, recipe):
        reporter.info(f"`{checkpoint.path}`: {moved}")
    default = "encoder.onnx" if what.classes is None else "model.onnx"
    target = subject.home / default if out is None else Path(out)
    refuse_unwritable(target, "`--out FILE.onnx` writes it elsewhere")
    graph = graph_of(what, recipe, checkpoint, pixels=pixels, opset=opset)
    with _draft_folder(target) as draft:
        difference = write_onnx(graph, draft, reporter)
        files = publish_onnx(draft, target)
    return {
        "out": str(target),
        "files": [str(file) for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "kind": graph.metadata["kind"],
        "opset": opset,
        "checked": difference is not None,
        "max_difference": difference,
        "metadata": graph.metadata,
    }


def open_exportable(checkpoint: Checkpoint, recipe: Recipe, *, features: bool) -> Exportable:
    """Build the network of a checkpoint, ready to be exported.

    Raises:
        CheckpointError: If it is a tokenizer's, or the weights do not fit.
        RecipeError: If the recipe drops tokens in evaluation.
    """
    refuse_tokenizer(checkpoint)
    drop = recipe.evaluate.drop
    if drop is not None:
        raise RecipeError(
            f"`evaluate.drop.kind: {drop.kind}` draws tokens for every view, which an exported "
            "network cannot do",
            hint="`evaluate.drop=null` exports the network over all tokens",
        )
    if checkpoint.kind == "finetuned" and not features:
        run = LoadedRun(recipe, checkpoint)
        classes, classifier = class_names_of(run), load_classifier(run).requires_grad_(False)
        outputs = {"logits": f"float32 (batch, {len(classes)}), before the softmax"}
        return Exportable(classifier.eval(), outputs, classes)
    encoder = frozen_encoder(recipe, checkpoint)
    outputs = {
        "feature": f"float32 (batch, {encoder.width}), the mean over the tokens",
        "tokens": f"float32 (batch, {encoder.tokens}, {encoder.width}), by time, row and column",
    }
    return Exportable(EncoderFeatures(encoder, layer=recipe.evaluate.layer).eval(), outputs)


class EncoderFeatures(nn.Module):
    """A frozen encoder with two outputs: the mean of a clip's tokens, and the tokens.

    Arguments and errors are those of `PooledFeatures`, which evaluation uses.
    """

    def __init__(self, encoder: Encoder, *, layer: int | None) -> None:
        super().__init__()
        self.features = PooledFeatures(encoder, layer=layer)

    def forward(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and tokens (B, N, D)."""
        tokens_BND = self.features.tokens(video_BCTHW)
        return tokens_BND.mean(dim=1), tokens_BND


class FromFrames(nn.Module):
    """A network of standardised video, called with frames as decoders give them.

    Args:
        network: Takes float32 (B, C, T, H, W).
        mean: Of red, green and blue in [0, 1].
        std: Standard deviations of those.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean_C", torch.tensor(mean))
        self.register_buffer("std_C", torch.tensor(std))

    def forward(self, video_BTHWC: Tensor) -> Any:
        """Standardise uint8 frames and call the network."""
        unit_BTHWC = video_BTHWC.to(torch.float32) / 255
        standard_BTHWC = (unit_BTHWC - self.mean_C) / self.std_C
        return self.network(standard_BTHWC.permute(0, 4, 1, 2, 3))


def graph_of(
    what: Exportable, recipe: Recipe, checkpoint: Checkpoint, *, pixels: Pixels, opset: int
) -> Graph:
    """Return the network with the input of the file."""
    data = recipe.data
    frames, (height, width) = data.frames, data.view_size

    def example(batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        if pixels == "float":
            return torch.randn(batch, 3, frames, height, width, generator=generator)
        shape = (batch, frames, height, width, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def reference(video: Tensor) -> tuple[Tensor, ...]:
        if pixels == "uint8":  # as evaluation does, not as the file does
            video = standardized(video.permute(0, 4, 1, 2, 3), data.mean, data.std)
        found = what.network(video)
        return found if isinstance(found, tuple) else (found,)

    network = what.network
    if pixels == "uint8":
        network = FromFrames(network, data.mean, data.std).eval()
    return Graph(
        network,
        reference,
        example,
        input="video",
        outputs=list(what.outputs),
        metadata=describe(what, recipe, checkpoint, pixels),
        opset=opset,
    )


def describe(
    what: Exportable, recipe: Recipe, checkpoint: Checkpoint, pixels: Pixels
) -> dict[str, str]:
    """Return the metadata of a file: how its input is made, and where it comes from.

    Everything but plain text is JSON.
    """
    data, classifier = recipe.data, what.classes is not None
    facts: dict[str, Any] = {
        "kind": "classifier" if classifier else "encoder",
        "classes": what.classes,
        "input": _INPUTS[pixels],
        "outputs": what.outputs,
        "preprocessing": _PREPROCESSING + _RESIZE[data.resize],
        "frames": data.frames,
        "size": data.view_size,
        "sampling": recipe.view_sampling.model_dump(
            mode="json", exclude={"clips"}, exclude_none=True
        ),
        "mean": data.mean,
        "std": data.std,
        "tubelet": recipe.model.tubelet,
        "patch": recipe.model.patch,
        "layer": None if classifier else recipe.evaluate.layer,
        "trained": checkpoint.kind,
        "name": checkpoint.meta.get("name"),
        "step": checkpoint.step,
        "checkpoint_sha256": checkpoint.digest(),
        "tats": __version__,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in facts.items()
        if value is not None
    }


@contextmanager
def _draft_folder(target: Path) -> Iterator[Path]:
    """Give a path to write to, in a folder beside the target, so that the finished file only has to
    be renamed; a kill leaves at most one such folder."""
    folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
