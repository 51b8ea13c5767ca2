"""The model card of a folder for `transformers`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tatscli.nn.vit import SIZES
from tatscli.recipe.schema import Recipe, Sampling
from tatscli.recipe.text import dump_mapping, dump_recipe
from tatscli.weights.export import Export
from tatscli.weights.spec import IMAGENET

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of data sets and models that the hub accepts."""

_METRICS = {"top1": "accuracy", "top5": "top-5 accuracy"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says besides what follows from the weights.

    Attributes:
        name: Name of the weights.
        license: Licence identifier; None if none was given.
        source: Where they come from, with the SHA-256.
        store: The store that they were trained on; None if unknown.
        derived: Whether the recipe was derived from the weights, so that training is unknown.
        base: Name of the weights that training started from.
        results: Evaluation results of exactly these weights.
    """

    name: str
    license: str | None
    source: str
    store: str | None = None
    derived: bool = False
    base: str | None = None
    results: list[dict[str, Any]] = field(default_factory=list)


def model_card(export: Export, facts: Facts) -> str:
    """Return the text of the card."""
    return "\n".join(
        [
            "---",
            dump_mapping(_head(export, facts)).rstrip(),
            "---",
            "",
            f"# {facts.name}",
            "",
            _about(export, facts),
            "",
            "## Input",
            "",
            *_input(export, facts),
            "",
            "## Evaluation",
            "",
            *_results(facts.results),
            "",
            "## Notes",
            "",
            *_notes(export),
            "",
            "## Recipe",
            "",
            *_recipe(export, facts),
            "",
        ]
    )


def _head(export: Export, facts: Facts) -> dict[str, Any]:
    """The YAML that the hub reads."""
    classifies = export.spec.classes is not None
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "video-classification" if classifies else "feature-extraction",
        "license": facts.license or "unknown",
        "tags": ["video", "videomae", "masked-autoencoder", "tats"],
    }
    data = _data_set(facts.store)
    if data is not None:
        head["datasets"] = [data]
    if facts.base is not None and _HUB_NAME.fullmatch(facts.base):
        head["base_model"] = facts.base
    if facts.results:
        index = {"name": facts.name, "results": [_indexed(one) for one in facts.results]}
        head["model-index"] = [index]
    return head


def _indexed(result: dict[str, Any]) -> dict[str, Any]:
    """One evaluation in the form of the hub's `model-index`."""
    protocol = protocol_words(result)
    data = _data_set(result.get("store")) or "unknown"
    return {
        "task": {"type": "video-classification"},
        "dataset": {"name": data, "type": data, "split": str(result.get("split"))},
        "metrics": [
            {"type": "accuracy", "name": f"{name} ({protocol})", "value": round(result[key], 4)}
            for key, name in _METRICS.items()
            if isinstance(result.get(key), int | float)
        ],
    }


def protocol_words(result: dict[str, Any]) -> str:
    """Describe an evaluation: protocol, views of a video, frames."""
    recipe = result.get("recipe") or {}
    frames = (recipe.get("data") or {}).get("frames")
    clips = f"{result.get('segments', '?')} segments x {result.get('crops', '?')} crops"
    return f"{result.get('protocol')}, {clips}" + (f", {frames} frames" if frames else "")


def _about(export: Export, facts: Facts) -> str:
    vit = export.spec.encoder
    size = next((f"ViT-{one} " for one, sides in SIZES.items() if sides == vit), "")
    what = "A video classifier"
    if export.spec.classes is None:
        what = "A video encoder" if export.encoder_only else "A masked autoencoder of videos"
    said = [
        f"{what} in VideoMAE's architecture, {size}of width {vit.width}, {vit.depth} blocks and "
        f"{vit.heads} heads; open it with `{export.architecture}`. Made from {facts.source} by "
        "`tats convert`.",
    ]
    if export.spec.classes is not None:
        said.append(f"It has {export.spec.classes} classes.")
    trained = _data_set(facts.store)
    said.append(
        "Its training data are unknown." if trained is None else f"It was trained on `{trained}`."
    )
    if facts.base is not None:
        said.append(f"Training started from `{facts.base}`.")
    if facts.license is None:
        said.append("No licence was given when these weights were converted.")
    return " ".join(said)


def _input(export: Export, facts: Facts) -> list[str]:
    spec = export.spec
    drawn = sampling_words(sampling_of(export.recipe, export.kind))
    if facts.derived:
        drawn = "the frame stride of training is unknown (4 for VideoMAE on Kinetics)"
    height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
    said = [
        f"- {spec.frames} frames of {height} x {width} pixels, as `pixel_values` of shape "
        f"(batch, {spec.frames}, 3, {height}, {width})",
        f"- You choose the frames, since the processor takes them as given: {drawn}",
        f"- Pixels in [0, 1] are standardised with mean {list(spec.mean)} and standard deviation "
        f"{list(spec.std)}; the processor files set both, since the defaults are 0.5",
    ]
    if height != width:
        said.append(
            "- The processor resizes to exactly this size, without keeping the aspect ratio"
        )
    return said


def sampling_of(recipe: Recipe, kind: str) -> Sampling:
    """Return how frames are sampled for these weights."""
    return recipe.view_sampling if kind == "finetuned" else recipe.data.sampling


def sampling_words(sampling: Sampling) -> str:
    """Describe which frames of a video make a clip."""
    if sampling.mode == "uniform":
        return "one from each of as many equal parts of the video"
    if sampling.fps is not None:
        return f"consecutive, at {sampling.fps:g} frames a second"
    return f"every {_ordinal(sampling.stride or 1)} frame of the video (stride {sampling.stride})"


def _results(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return ["There are no evaluation results for these weights."]
    rows = ["| protocol | data | split | videos | top-1 | top-5 |", "|---|---|---|---|---|---|"]
    for one in results:
        top5 = f"{one['top5']:.4f}" if isinstance(one.get("top5"), int | float) else ""
        cells = (
            protocol_words(one),
            _data_set(one.get("store")) or "unknown",
            one.get("split"),
            one.get("videos"),
            f"{one['top1']:.4f}",
            top5,
        )
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return rows


def _notes(export: Export) -> list[str]:
    said = []
    if export.spec.classes is not None or export.spec.decoder is not None:
        norm = "fc_norm" if export.spec.classes is not None else "decoder.norm"
        said.append(
            f"- `transformers` computes `{norm}` with an epsilon of 1e-5 whatever `config.json` "
            f"says, while the weights were trained with 1e-6: set `model.{norm}.eps = 1e-6` for "
            "identical outputs"
        )
    if export.spec.decoder is not None and (export.spec.mean, export.spec.std) != IMAGENET:
        said.append(
            "- The loss of `VideoMAEForPreTraining` denormalises with ImageNet's mean and standard "
            "deviation, which are not those of this model; its logits are correct"
        )
    if export.spec.classes is None:
        said.append("- Keep `use_mean_pooling` off: it would remove the encoder's last norm")
    for reason, names in export.left_out.items():
        said.append(f"- Left out, {len(names)} tensors: {reason}")
    said += [f"- {one[0].upper()}{one[1:]}" for one in export.notes]
    return said


def _recipe(export: Export, facts: Facts) -> list[str]:
    text = dump_recipe(export.recipe)
    if facts.derived:
        said = export.recipe.model_dump(mode="json")
        data = {key: said["data"][key] for key in ("frames", "size", "mean", "std")}
        text = dump_mapping(
            {"data": data} | {key: said[key] for key in ("model", "head", "targets")}
        )
    known = ["The known part; how it was trained is unknown.", ""] if facts.derived else []
    return [*known, "```yaml", text.rstrip(), "```"]


def _data_set(store: object) -> str | None:
    """Return the name of a store if it is a valid data set name."""
    name = Path(str(store)).name if store else ""
    return name if _HUB_NAME.fullmatch(name) else None


def _ordinal(number: int) -> str:
    if number == 1:
        return "single"
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
