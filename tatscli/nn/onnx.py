"""Networks as ONNX files: traced with an open batch, written, and compared with torch.

torch's exporter may freeze the batch or optimise a graph into another one without a word, so
nothing is taken on trust: what onnxruntime makes of the file decides.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.errors import TatsError, UsageError
from tatscli.files import publish, sync

TOLERANCE = 1e-4
"""Largest difference from torch's output, as a share of that output's largest value."""
LARGE = 1_500_000_000
"""Bytes of weights above which they go into a file of their own; one file holds 2 GiB at most."""
CHECKED = (1, 3)
"""Batches that a file is compared at: others than that of the example."""
_EXAMPLE = 2  # a batch of one would be taken for a constant
_MOST = 1 << 16  # clips in a batch


@dataclass(frozen=True, slots=True)
class Graph:
    """A network to be written, and what the file must compute.

    Attributes:
        network: Maps one tensor, batch first, to a tensor or a tuple of them; in evaluation mode.
        reference: Maps the same tensor to what the outputs must be.
        example: Makes an input of any batch.
        input: Its name.
        outputs: Names of the outputs.
        metadata: What the file says of itself.
        opset: Version of ONNX's operators.
    """

    network: nn.Module
    reference: Callable[[Tensor], tuple[Tensor, ...]]
    example: Callable[[int], Tensor]
    input: str
    outputs: Sequence[str]
    metadata: Mapping[str, str]
    opset: int


def need_onnx() -> None:
    """Find out that a package of the extra `onnx` is missing.

    Raises:
        UsageError: If so.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"exporting to ONNX needs packages that are not installed: {', '.join(missing)}",
            hint="pip install 'tats[onnx]'",
        )


def write_onnx(graph: Graph, draft: Path, reporter: Reporter) -> float | None:
    """Write a file and compare it with torch; where the optimised graph differs, the plain one.

    Weights of more than `LARGE` bytes go into `<draft>.data`.

    Returns:
        The largest difference, a share as in `TOLERANCE`; None without onnxruntime.

    Raises:
        UsageError: If torch cannot write this opset.
        TatsError: If both graphs differ from torch, or onnxruntime does not run them.
    """
    reporter.info(f"exporting with opset {graph.opset}")
    video = graph.example(_EXAMPLE)
    with torch.no_grad(), _quiet():
        exported = torch.export.export(graph.network, (video,), dynamic_shapes=_open_batch())
    _write(graph, exported, draft, optimize=True)
    if find_spec("onnxruntime") is None:
        reporter.warn(
            "the file is not checked, since onnxruntime is not installed; "
            "`pip install onnxruntime` and export again"
        )
        return None
    reporter.info("comparing with torch in onnxruntime")
    difference = compare(graph, draft)
    if difference > TOLERANCE:
        reporter.warn(
            f"the optimised graph differs from torch by {difference:.2g}; trying without "
            "optimisation"
        )
        _write(graph, exported, draft, optimize=False)
        difference = compare(graph, draft)
    if difference > TOLERANCE:
        raise TatsError(
            f"the exported network differs from torch by {difference:.2g}, more than "
            f"{TOLERANCE:g}: nothing was written",
            hint="try another `--opset`, or other versions of torch, onnxscript or onnxruntime",
        )
    return difference


def compare(graph: Graph, file: Path) -> float:
    """Return the largest difference of a file in onnxruntime from the reference, a share as in
    `TOLERANCE`.

    Raises:
        TatsError: If onnxruntime cannot run the file, or its outputs have other shapes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    differences = []
    try:
        runner = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for batch in CHECKED:
            given = graph.example(batch)
            found = runner.run([*graph.outputs], {graph.input: given.numpy()})
            with torch.inference_mode():
                wanted = graph.reference(given)
            differences += [_difference(*pair) for pair in zip(wanted, found, strict=True)]
    except Exception as error:  # onnxruntime's errors have no base of their own
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise TatsError(
            f"onnxruntime {onnxruntime.__version__} cannot run the exported network, and nothing "
            f"was written: {str(error).splitlines()[0]}",
            hint="try `--opset 18`, or a newer onnxruntime",
        ) from error
    return max(differences)


def publish_onnx(draft: Path, target: Path) -> list[Path]:
    """Give a finished file its name, and its weights theirs where they are a file of their own.

    Returns:
        The files that are there now.
    """
    weights, place = (one.with_name(f"{one.name}.data") for one in (draft, target))
    for one in (draft, weights):
        if one.exists():
            sync(one)
    if weights.exists() or place.exists():
        # An old file must never be seen beside new weights, nor a new one beside old weights.
        target.unlink(missing_ok=True)
        place.unlink(missing_ok=True)
    if weights.exists():
        publish(weights, place)
    publish(draft, target)
    return [one for one in (target, place) if one.exists()]


def _write(graph: Graph, exported: Any, draft: Path, *, optimize: bool) -> None:
    """Translate a trace and write it."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            exported,
            input_names=[graph.input],
            output_names=[*graph.outputs],
            opset_version=graph.opset,
            dynamo=True,
            dynamic_shapes=_open_batch(),
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    # A conversion that fails leaves the version as it was, and is mentioned in the log alone.
    if program.model.opset_imports.get("") != graph.opset:
        raise UsageError(
            f"torch {torch.__version__} cannot write `--opset {graph.opset}`",
            hint="leave it out: 18, the default, always works",
        )
    program.model.metadata_props.update(graph.metadata)
    tensors = graph.network.state_dict().values()
    weights = sum(one.numel() * one.element_size() for one in tensors)
    program.save(draft, external_data=weights > LARGE)


def _difference(wanted: Tensor, found: Any) -> float:
    if found.shape != tuple(wanted.shape):
        raise TatsError(
            f"the exported network answers with shape {found.shape} instead of "
            f"{tuple(wanted.shape)}: nothing was written"
        )
    away = (torch.from_numpy(found) - wanted).abs().max()
    return float((away / wanted.abs().max().clamp(min=1e-6)).nan_to_num(torch.inf))


def _open_batch() -> Any:
    return ({0: torch.export.Dim("batch", min=1, max=_MOST)},)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about itself away from users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
