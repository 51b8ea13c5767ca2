"""Recipes that were damaged: each is read, or refused with its file named, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random
from string import ascii_lowercase

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tatscli.errors import RecipeError
from tatscli.recipe.load import load_recipe
from tatscli.recipe.shipped import shipped
from tatscli.recipe.text import dump_mapping

TEXTS = [dump_mapping(load_recipe(one.name).merged) for one in shipped()]
WORDS = r"""0100 1:30 on none null ~ {} [] - : ? | > % @ ` ' " # & * << = . .inf .nan 1e400 -1 0
true {kind:mgm} kind [1,2] 0x10 2024-1-1 !!int !!bool !!set !x &a *a --- ... "\ud800" 1e30"""
MARKS = ["\x00", "\x07", "\x80", "\x85", "\u2028", "\ufeff", "\U0001f600", "\n", "\t", "  ", ": "]
LONG = ["\n\n- ", "9" * 5000, "[" * 2000, "{" * 60 + "}" * 60]
PIECES = [*WORDS.split(), *MARKS, *LONG]
DOUBLING = [f"{two}: &{two} [*{one}, *{one}]\n" for one, two in pairwise(ascii_lowercase)]


def mutated(rng: Random) -> str:
    """A shipped recipe, cut, filled, or with other values and indentation, a few times over."""
    text = rng.choice(TEXTS)
    for _ in range(rng.randint(1, 4)):
        piece, place = rng.choice(PIECES), rng.randint(0, len(text))
        match rng.choice(["insert", "value", "cut", "indent"]):
            case "insert":
                text = text[:place] + piece + text[place:]
            case "cut":
                text = text[:place] + text[place + rng.randint(1, 40) :]
            case how:
                lines = text.split("\n")
                row = rng.randrange(len(lines))
                key, _, _ = lines[row].partition(":")
                indented = " " * rng.randint(0, 6) + lines[row].lstrip()
                lines[row] = f"{key}: {piece}" if how == "value" else indented
                text = "\n".join(lines)
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "mutated.yaml"


MINIMAL = "data: {store: x}\nmask: {kind: tube}\n"


@example(text=MINIMAL + "run: {seed: \x00}\n")
@example(text="!!timestamp then\n")
@example(text=MINIMAL + "run: {compile: !!bool maybe}\n")
@example(text="[" * 3000)
@example(text=MINIMAL + "run: {out: " + "[" * 60 + "]" * 60 + "}\n")
@example(text=MINIMAL + 'run: {out: "\\ud800"}\n')
@example(text="a: &a [x, x]\n" + "".join(DOUBLING))
@settings(
    max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(text=st.randoms(note_method_calls=False, use_true_random=True).map(mutated))
def test_a_mutated_recipe_is_read_or_refused(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(file)
    except RecipeError as error:
        assert f"`{file}`" in error.message
        error.message.encode()  # so that it can be printed


@settings(max_examples=100)
@given(
    key=st.sampled_from(
        ["data.store", "optim.epochs", "mask", "targets.0", "run.seed", "data.size"]
    )
    | st.text(max_size=6),
    value=st.sampled_from(PIECES) | st.text(max_size=3),
)
def test_a_mutated_override_is_read_or_refused(file: Path, key: str, value: str) -> None:
    file.write_text(MINIMAL)
    try:
        load_recipe(file, [f"{key}={value}"])
    except RecipeError as error:
        error.message.encode()
