"""Side effects of overrides: a new mask or model size also sets what was published with it.

Numbers chosen for one mask or size are wrong for another: VideoMAE's tube mask hides 0.9, AdaMAE's
sampler 0.95. So `mask.kind=tube` also sets VideoMAE's ratio, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tatscli.recipe.keys import Keys, Kinds, fields_of, node_of
from tatscli.recipe.schema import Recipe, Section
from tatscli.recipe.shipped import shipped
from tatscli.recipe.text import dump_value, parse

DECODER_DEPTHS = {"small": 4, "base": 4, "large": 12, "huge": 12, "giant": 4}
"""Decoder depth published with each size: VideoMAE's, for giant VideoMAE V2's."""

_HOMES = {"tats": "", "tube": "videomae/", "mgm": "mgm/"}
"""Folder of the shipped recipes with the published settings of a mask, one per data set."""


def bring_published(
    merged: dict[str, Any], before: dict[str, Any], overridden: set[Keys]
) -> list[str]:
    """Change `merged` in place after all overrides; keys they set explicitly stay.

    Args:
        merged: The recipe with its overrides, as plain values.
        before: The same without them.
        overridden: The keys that overrides have set.

    Returns:
        Sentences about what was changed or kept.
    """
    return [
        *_bring_mask(merged, before, overridden),
        *_bring_depth(merged, before, overridden),
    ]


def _bring_mask(merged: dict[str, Any], before: dict[str, Any], overridden: set[Keys]) -> list[str]:
    """A new `mask.kind` takes the settings of the shipped recipe with this mask and data set, else
    the mask's defaults. Models of unpublished sizes keep the recipe's settings."""
    mask, old = merged.get("mask"), before.get("mask")
    chosen = ("mask", "kind") in overridden and ("mask",) not in overridden
    if not chosen or not isinstance(mask, dict) or not isinstance(old, dict):
        return []
    kind, kinds = mask["kind"], node_of(Recipe.model_fields["mask"].annotation)
    assert isinstance(kinds, Kinds)
    section = kinds.by_name.get(kind) if isinstance(kind, str) else None
    if section is None or kind == old.get("kind"):
        return []
    given = {keys[1] for keys in overridden if keys[0] == "mask" and keys[1] != "kind"}
    own = {key: value for key, value in mask.items() if key in given}
    home, published = _home(kind, before)
    settings = {"kind": kind} | published.get("mask", {}) | own
    changed = [
        key
        for key in dict.fromkeys([*mask, *settings])
        if _effective(mask, section, key) != _effective(settings, section, key)
    ]
    source = f"as in `{home}`" if home else f"the defaults of `{kind}`"
    if _size(merged) not in DECODER_DEPTHS:
        kept = ", ".join(f"`mask.{key}: {_show(mask, section, key)}`" for key in changed)
        theirs = ", ".join(f"`{key}: {_show(settings, section, key)}`" for key in changed)
        where = f"`{home}` has" if home else f"the defaults of `{kind}` are"
        words = f"`mask.kind={kind}` keeps {kept} from the recipe; {where} {theirs}"
        return [words] if changed else []
    merged["mask"] = settings
    sets = ", ".join(
        f"`mask.{key}: {_show(settings, section, key)}`"
        + (f" (was {_show(mask, section, key)})" if key in mask else "")
        for key in changed
    )
    notes = [f"`mask.kind={kind}` sets {sets}, {source}"] if changed else []
    epochs, theirs_epochs = (one.get("optim", {}).get("epochs", 800) for one in (merged, published))
    if home and epochs != theirs_epochs and not {("optim",), ("optim", "epochs")} & overridden:
        notes.append(f"`optim.epochs` stays {epochs}; `{home}` has {theirs_epochs}")
    return notes


def _bring_depth(
    merged: dict[str, Any], before: dict[str, Any], overridden: set[Keys]
) -> list[str]:
    """A new `model.size` takes the decoder depth that was published with it."""
    size, head = _size(merged), merged.get("head", {})
    named = {("head",), ("head", "depth")} & overridden
    if ("model", "size") not in overridden or size == _size(before) or named:
        return []
    depth, notes = DECODER_DEPTHS.get(str(size)), []
    if depth and isinstance(head, dict) and head.get("kind", "decoder") == "decoder":
        old = head.get("depth", 4)
        merged["head"] = {"kind": "decoder"} | head | {"depth": depth}
        if old != depth:
            notes.append(
                f"`model.size={size}` sets `head.depth: {depth}`, the published value for this size"
                f" (was {old})"
            )
    name = f"videomae/{_data_set(before)}-{size}"
    if any(one.name == name for one in shipped()):
        notes.append(f"`{name}` has VideoMAE's batch and learning rate for this size")
    return notes


def _home(kind: str, recipe: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Find the shipped recipe with this mask and the recipe's data set: its name and values."""
    name = _HOMES.get(kind, "none/") + _data_set(recipe)
    for one in shipped():
        if one.name == name:
            values = parse(one.path.read_text(encoding="utf-8"), name).value
            return (name, values) if values["mask"]["kind"] == kind else (None, {})
    return None, {}


def _data_set(recipe: dict[str, Any]) -> str:
    """The data set, by the name of the store: `ssv2` of `prepared/ssv2`."""
    data = recipe.get("data")
    store = data.get("store") if isinstance(data, dict) else None
    return Path(store).name if isinstance(store, str) else ""


def _size(recipe: dict[str, Any]) -> Any:
    """The size of the model by name; None where it is spelled out."""
    model = recipe.get("model") or {}
    if not isinstance(model, dict):
        return None
    spelled = model.get("width") is not None
    return model.get("size", None if spelled else "base")


def _effective(values: dict[str, Any], section: type[Section], key: str) -> Any:
    """The value of a key, its default where it is not given, as YAML has it."""
    default = fields_of(section)[key].get_default(call_default_factory=True)
    return values.get(key, list(default) if isinstance(default, tuple) else default)


def _show(values: dict[str, Any], section: type[Section], key: str) -> str:
    return dump_value(_effective(values, section, key))
