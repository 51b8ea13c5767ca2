"""The model by name or spelled out, the kinds of head and target, and what wrong ones are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tatscli.errors import RecipeError
from tatscli.nn.vit import SIZES, model_size
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import DifferenceTarget, Recipe, RegressorHead
from tatscli.recipe.text import dump_recipe

MINIMAL = "data: {store: x}\nmask: {kind: tube}\n"
SPELLED = "model: {width: 96, depth: 3, heads: 6}\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """Load a recipe that ends in some text."""

    def read(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "mine.yaml"
        path.write_text(MINIMAL + text)
        return load_recipe(path, overrides).recipe

    return read


@pytest.mark.parametrize("size", SIZES)
def test_a_size_by_name(load: Callable[..., Recipe], size: str) -> None:
    recipe = load(f"model: {{size: {size}}}\n")
    assert model_size(recipe.model) == SIZES[size]
    assert (recipe.model.width, recipe.model.mlp) == (None, None)


def test_giant_is_published_with_its_own_inner_width(load: Callable[..., Recipe]) -> None:
    assert model_size(load("model: {size: giant}\n").model) == (1408, 40, 16, 6144)
    assert model_size(load("").model) == (768, 12, 12, 3072)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (SPELLED, []),
        ("model: {size: null, width: 96, depth: 3, heads: 6}\n", []),
        ("", ["model.width=96", "model.depth=3", "model.heads=6"]),
        ("model: {patch: 8}\n", ["model={width: 96, depth: 3, heads: 6}"]),
        ("model: {size: nano, heads: 6}\n", ["model.size=null", "model.width=96", "model.depth=3"]),
    ],
)
def test_a_model_spelled_out_needs_no_name(
    load: Callable[..., Recipe], text: str, overrides: list[str]
) -> None:
    model = load(text, *overrides).model
    assert model.size is None
    assert model_size(model) == (96, 3, 6, 4 * 96)


def test_the_inner_width_can_be_spelled_out_too(load: Callable[..., Recipe]) -> None:
    model = load("model: {width: 96, depth: 3, heads: 6, mlp: 100}\n").model
    assert model_size(model) == (96, 3, 6, 100)


@pytest.mark.parametrize("text", ["", "model: {size: giant}\n", SPELLED])
def test_a_whole_recipe_is_read_again(
    load: Callable[..., Recipe], tmp_path: Path, text: str
) -> None:
    recipe = load(text)
    path = tmp_path / "whole.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path).recipe == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("model: {size: gaint}\n", [], "`huge`, `giant`; did you mean `giant`?"),
        ("model: {width: 96, depth: 3}\n", [], "without `size` the model needs `heads`"),
        ("model: {mlp: 96}\n", [], "needs `width`, `depth`, `heads`"),
        ("model: {size: null}\n", [], "needs `width`, `depth`, `heads`"),
        ("model: {size: nano, mlp: 96}\n", [], "`size: nano` and `mlp` cannot be combined"),
        (SPELLED, ["model.size=tiny"], "`size: tiny` and `width` cannot be combined"),
        (SPELLED, ["model.heads=7"], "`width: 96` is not a multiple of `heads: 7`"),
        (SPELLED, ["model.depth=0"], "`model.depth: 0` must be at least 1"),
        (SPELLED, ["model.depth=1001"], "`model.depth: 1001` must be at most 1000"),
        (SPELLED, ["model.width=9999999"], "`model.width: 9999999` must be at most"),
        ("", ["data.frames=1000000000"], "make 98,000,000,000 tokens per clip; at most"),
        ("head: {depth: 2}\n", [], "`head.kind` is missing; it must be one of `decoder`, `regr"),
        ("head: {kind: decodr}\n", [], "did you mean `decoder`?"),
        ("head: {kind: decoder, alignment: 2}\n", [], "`head.alignment` belongs to `kind: regr"),
        ("head: {kind: regressor, regressor_depth: 7}\n", [], "must be at most 6"),
        ("head: {kind: regressor, depth: 9}\n", [], "must be at most 8"),
        ("head: {kind: regressor, alignment: -1}\n", [], "must be at least 0"),
        ("head: {kind: regressor, layer_scale: 0}\n", [], "must be greater than 0"),
        ("targets: [{kind: difference, gaps: []}]\n", [], "must be a list of at least 1"),
        (
            "targets: [{kind: difference, gaps: [0]}]\n",
            [],
            "`targets.0.gaps.0: 0` must be",
        ),
        ("targets: [{kind: difference, floor: 0}]\n", [], "must be greater than 0"),
        ("targets: [{kind: difference, span: cubes}]\n", [], "did you mean `cube`?"),
        ("targets: [{kind: pixels, gaps: [1]}]\n", [], "belongs to `kind: difference`"),
    ],
)
def test_one_problem_in_words(
    load: Callable[..., Recipe], text: str, overrides: list[str], words: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        load(text, *overrides)
    lines = refused.value.message.splitlines()[1:]
    assert len(lines) == 1
    assert words in lines[0]


def test_a_head_left_out_is_the_decoder_and_an_override_changes_it(
    load: Callable[..., Recipe],
) -> None:
    assert load("", "head.depth=2").head.kind == "decoder"
    head = load("", "head.kind=regressor").head
    assert isinstance(head, RegressorHead)
    assert (head.regressor_depth, head.depth, head.layer_scale, head.alignment) == (4, 4, 0.1, 0)
    head = load("head: {kind: regressor, regressor_depth: 0, depth: 0}\n").head
    assert (head.regressor_depth, head.depth) == (0, 0)  # type: ignore[union-attr]


def test_targets_of_both_kinds(load: Callable[..., Recipe]) -> None:
    text = "targets: [{kind: pixels}, {kind: difference}]\n"
    first, second = load(text, "targets.1.gaps=[1, 3]", "targets.1.weight=0.5").targets
    assert first.kind == "pixels"
    assert isinstance(second, DifferenceTarget)
    assert (second.span, second.gaps, second.normalize) == ("cube", [1, 3], True)
    assert (second.floor, second.weight) == (0.02, 0.5)
