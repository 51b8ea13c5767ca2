"""Converting weights between layouts: our runs, folders of `transformers`, official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tatscli import __version__
from tatscli.console import Reporter
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.keeping import save_checkpoint
from tatscli.engine.run import describe_run, write_run_json
from tatscli.errors import UsageError
from tatscli.files import draft_of, refuse_existing, refuse_unwritable
from tatscli.recipe.text import dump_recipe
from tatscli.tasks.convert_source import Source, open_source
from tatscli.tasks.results import results_in
from tatscli.weights.card import Facts, model_card, sampling_of
from tatscli.weights.export import Export, exported, write_hf, write_videomae
from tatscli.weights.layouts import Given
from tatscli.weights.paths import CONFIG, name_of

Layout = Literal["tats", "hf", "videomae"]

_MARKS = {"tats": "recipe.yaml", "hf": CONFIG}
"""A file that a folder must have to be replaced by `overwrite`."""

_NOT_IN_FILES = (
    "the official layout does not store heads, frames, size, mean, standard deviation or class "
    "names: whoever reads the file has to know them"
)


def convert(
    source: Path | str,
    *,
    to: Layout,
    out: Path | str,
    reporter: Reporter,
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    given: Given | None = None,
    classes: Path | None = None,
    class_names: Path | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write weights in another layout; nothing is written if anything does not fit.

    Args:
        source: A run or checkpoint, or weights from another program.
        to: `tats`, a run folder at step 0; `hf`, a folder of `transformers`; `videomae`, a file in
            the official layout.
        out: The folder or file to write.
        reporter: Speaks to the user.
        overrides: Recipe keys to change; only for weights from other programs.
        prefer: Which checkpoint of a run.
        given: What the weights do not say themselves, and whether a part of them is enough.
        classes: A map of the classes to keep (`weights/classes.py`).
        class_names: A file with their names.
        license: Licence identifier for the model card.
        overwrite: Replace what is at `out`.

    Returns:
        `source`, `layout`, `kind`, `to`, `out`, `files`, `sha256` of the source file; its
        `tensors`, `matched`, `missing`, `unexpected`, `dropped`, `made`; `written`, `parameters`,
        `left_out`, `not_finite`, `notes`; `frames`, `size`, `classes`.

    Raises:
        TatsError: If the source cannot be read or does not fit, or the target cannot hold it.
    """
    given, target = given or Given(), Path(out)
    _refuse_target(target, to, Path(source), overwrite=overwrite)
    found = open_source(source, overrides, prefer, given, classes, class_names)
    for remark in found.checkpoint.remarks:
        reporter.info(remark)
    digest, checkpoint = found.checkpoint.file_digest(), found.checkpoint
    if bad := [name for name, one in found.tensors.items() if not one.isfinite().all()]:
        reporter.warn(
            f"`{source}`: {len(bad)} of {len(found.tensors)} tensors have values that are not "
            f"finite, the first is `{bad[0]}`"
        )
    if to == "tats":
        written, left_out, notes = found.tensors, {}, []
        files = _publish_run(found, target, digest)
    else:
        export = exported(
            checkpoint, found.recipe, found.tensors, found.labels, partial=given.partial
        )
        written, left_out, notes = export.tensors, export.left_out, export.notes
        for reason, names in left_out.items():
            reporter.info(f"{len(names)} tensors left out: {reason}")
        for note in notes:
            reporter.info(note)
        if to == "hf":
            files = _publish_folder(found, export, target, digest, license)
        else:
            files = _publish_file(export, target)
            notes = [*notes, _NOT_IN_FILES]
            reporter.info(_NOT_IN_FILES)
    counts = found.counts
    return {
        "source": str(source),
        "kind": checkpoint.kind if to == "tats" else export.kind,
        "to": to,
        "out": str(target),
        "files": files,
        "sha256": digest,
        **counts,
        "notes": counts["notes"] + notes,
        "written": len(written),
        "not_finite": len(bad),
        "parameters": sum(one.numel() for one in written.values()),
        "left_out": {reason: len(names) for reason, names in left_out.items()},
        "frames": found.recipe.data.frames,
        "size": list(found.recipe.data.view_size),
        "classes": None if found.labels is None else len(found.labels),
    }


def _refuse_target(target: Path, to: Layout, source: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot be written, before anything is read.

    Raises:
        UsageError: If so.
    """
    if to == "videomae" and target.suffix not in (".pth", ".pt"):
        raise UsageError(f"`--out {target}` must end in .pth", hint="the official layout is a file")
    if to != "videomae" and target.suffix in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"`--out {target}` is the name of a file, and `--to {to}` writes a folder")
    if not target.exists():
        refuse_unwritable(target)
        return
    here, there = target.resolve(), source.resolve()
    if here == there or here in there.parents:
        raise UsageError(
            f"`--out {target}` is the source, or contains it", hint="choose another `--out`"
        )
    refuse_existing(target, overwrite=overwrite)
    if target.is_dir() and any(target.iterdir()):
        mark = _MARKS.get(to)
        if mark is None or not (target / mark).is_file():
            raise UsageError(
                f"`{target}` does not look like what `--to {to}` writes, so `--overwrite` leaves "
                "it alone",
                hint="choose another `--out`, or delete it yourself",
            )


def _publish_run(source: Source, target: Path, digest: str) -> list[str]:
    """Write a run folder whose only checkpoint is at step 0."""
    checkpoint = source.checkpoint
    parts = {"model": source.tensors}
    if checkpoint.has("masker"):
        masker = checkpoint.tensors("masker")
        parts["masker"] = {key: one for key, one in masker.items() if key.startswith("weights/")}
    if checkpoint.has("targets"):
        parts["targets"] = checkpoint.tensors("targets")
    facts = {"source": str(checkpoint.path), "source_sha256": digest}
    meta = {
        key: one
        for key, one in checkpoint.meta.items()
        if key not in ("format", "step", "unscored")
    }
    meta |= {"recipe": source.recipe.model_dump(mode="json"), "tats": __version__, **facts}
    if source.labels is not None:
        meta["class_names"] = source.labels
        meta["class_groups"] = {
            name: group.model_dump(mode="json") for name, group in source.groups.items()
        }
    with draft_of(target) as draft:
        draft.mkdir()
        save_checkpoint(draft, step=0, tensors=parts, meta=meta, keep=1, best=False)
        (draft / "recipe.yaml").write_text(dump_recipe(source.recipe), encoding="utf-8")
        write_run_json(draft, describe_run(recipe=meta.get("name"), **facts, taken=source.counts))
    return ["recipe.yaml", "run.json", "checkpoints/last"]


def _publish_folder(
    source: Source, export: Export, target: Path, digest: str, license: str | None
) -> list[str]:
    """Write a folder for `transformers` with its model card."""
    checkpoint, meta = source.checkpoint, source.checkpoint.meta
    sampling = sampling_of(export.recipe, export.kind)
    in_run = checkpoint.path.parent.name == "checkpoints"
    scored = in_run and not source.chosen and export.kind == checkpoint.kind
    began, name = meta.get("init"), meta.get("name") or target.name
    facts = Facts(
        name=str(name),
        license=license,
        source=f"`{name}`, layout {source.counts['layout']}, sha256 {digest}",
        store=meta.get("store"),
        derived=bool(meta.get("derived")),
        base=_run_name(Path(began)) if began else None,
        results=_results_of(checkpoint) if scored else [],
    )
    tats = {
        "version": __version__,
        "kind": export.kind,
        "derived": bool(meta.get("derived")),
        "frames": export.spec.frames,
        "sampling": sampling.model_dump(mode="json"),
        "recipe": export.recipe.model_dump(mode="json"),
    }
    with draft_of(target) as draft:
        draft.mkdir()
        return write_hf(draft, export, tats=tats, card=model_card(export, facts))


def _results_of(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the evaluations of a run's checkpoint, in the order of their names."""
    # Results of earlier versions have the digest of the file.
    digests = (checkpoint.digest(), checkpoint.file_digest())
    return [
        facts
        for _, facts in sorted(results_in(checkpoint.path.parents[1]), key=lambda one: one[0])
        if facts.get("checkpoint_sha256") in digests and not facts.get("untrained")
        if facts.get("top1") is not None
    ]


def _publish_file(export: Export, target: Path) -> list[str]:
    """Write a file in the official layout."""
    with draft_of(target) as draft:
        write_videomae(draft, export)
    return [target.name]


def _run_name(path: Path) -> str:
    """Return the name of the run of a checkpoint, or a name for other weights."""
    return path.parents[1].name if path.parent.name == "checkpoints" else name_of(path)


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table that is printed."""
    rows = [
        ("source", f"{result['source']} ({result['layout']}, {result['kind']})"),
        ("tensors taken", f"{result['matched']} of {result['tensors']}"),
        *((f"left out: {reason}", str(count)) for reason, count in result["dropped"].items()),
        *((f"made: {reason}", str(count)) for reason, count in result["made"].items()),
        ("tensors written", f"{result['written']}, {result['parameters'] / 1e6:.2f} M parameters"),
        *((f"not written: {reason}", str(count)) for reason, count in result["left_out"].items()),
        ("clip", f"{result['frames']} frames of {' x '.join(map(str, result['size']))} pixels"),
    ]
    if result["classes"] is not None:
        rows.append(("classes", str(result["classes"])))
    return rows
