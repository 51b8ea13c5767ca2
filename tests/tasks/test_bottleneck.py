"""The one sentence of a benchmark, for situations that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tatscli.recipe.load import load_recipe
from tatscli.tasks.bottleneck import Facts, bottleneck

GOOD = Facts(
    device="cuda",
    step=400.0,
    batch=32,
    largest=40,
    wanted=32,
    step_at_largest=405.0,
    loader=900.0,
    workers=8,
    cores=8,
    cached=False,
    short_side=256,
    view=224,
    dtype="bfloat16",
    step_in_bf16=None,
    threads=8,
    compiled=False,
    checkpointing=False,
    host_share=0.4,
    of_ceiling=0.7,
    gflops=6400.0,
)
CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "host_share": 1.0}
SLOW: dict[str, Any] = {"loader": 100.0}


@pytest.mark.parametrize(
    ("changes", "kind", "key"),
    [
        ({}, "products", None),
        (SLOW | {"workers": 2}, "loader", "data.workers=8"),
        (SLOW | {"short_side": 480}, "loader", "--short-side 258"),
        (SLOW | {"short_side": None}, "loader", "--short-side 258"),
        (SLOW, "loader", "data.cache=auto"),
        (SLOW | {"cached": True}, "loader", "data.repeats"),
        ({"dtype": "float32", "step_in_bf16": 700.0}, "precision", "run.precision=bf16"),
        ({"dtype": "float32", "step_in_bf16": 410.0}, "products", None),
        ({"dtype": "float32"}, "products", None),
        ({"step_at_largest": 900.0, "largest": 128}, "batch", "optim.batch_per_device=128"),
        ({"checkpointing": True, "largest": 130}, "checkpointing", "model.checkpointing=false"),
        ({"checkpointing": True}, "products", None),
        ({"host_share": 0.97}, "launches", "run.compile=true"),
        ({"host_share": 0.97, "compiled": True}, "products", None),
        ({"of_ceiling": 0.3}, "products", "run.compile=true"),
        (CPU, "products", None),
        (CPU | {"threads": 1}, "threads", "run.threads=8"),
        (CPU | {"step_in_bf16": 900.0}, "precision", "run.precision=bf16"),
        (CPU | {"step_in_bf16": 300.0}, "products", None),
        (CPU | {"threads": 1, "gflops": 2.0}, "products", None),
        ({"largest": 8}, "memory", "model.checkpointing=true"),
        ({"largest": 0}, "memory", "model.checkpointing=true"),
        ({"largest": 8, "checkpointing": True}, "memory", "optim.batch_per_device=8"),
        ({"largest": 0, "checkpointing": True}, "memory", "model.size"),
        ({"largest": None, "step_at_largest": None}, "products", None),
        # What does not fit comes first, then the loader, then the step.
        (SLOW | {"workers": 2, "largest": 8}, "memory", "model.checkpointing=true"),
        (SLOW | {"workers": 2, "dtype": "float32"}, "loader", "data.workers=8"),
        ({"step_in_bf16": 700.0, "host_share": 0.99}, "precision", "run.precision=bf16"),
    ],
)
def test_the_bottleneck_is_named_with_its_key(
    changes: dict[str, Any], kind: str, key: str | None
) -> None:
    found = bottleneck(replace(GOOD, **changes))
    assert (found.kind, found.key) == (kind, key)
    assert found.sentence.endswith(".") and found.sentence.count("\n") == 0
    if key is not None:
        assert f"`{key}`" in found.sentence


def test_keys_are_those_of_the_recipe() -> None:
    """What a sentence tells people to set, the recipe accepts."""
    for changes in (
        SLOW | {"workers": 2}, SLOW, {"step_in_bf16": 900.0}, {"step_at_largest": 900.0},
        {"host_share": 0.97}, {"largest": 8}, CPU | {"threads": 1},
    ):  # fmt: skip
        for section in ("optim", "finetune.optim"):
            key = bottleneck(replace(GOOD, **changes), section).key
            assert key is not None
            load_recipe("small", [key])
