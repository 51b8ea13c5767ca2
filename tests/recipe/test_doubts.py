"""Learning rates that contradict each other, and settings without effect."""

from __future__ import annotations

import pytest

from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.doubts import contradiction, doubts
from tatscli.recipe.schema import FinetuneOptim, Optim, Recipe


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (Optim(base_lr=1e-6), "`optim.min_lr: 1e-05` is above `optim.base_lr: 1e-06`"),
        (Optim(warmup_lr=1e-2), "`optim.warmup_lr: 0.01` is above `optim.base_lr: 0.00015`"),
        (FinetuneOptim(min_lr=1), "`finetune.optim.min_lr: 1` is above"),
        (Optim(base_lr=1e-5), None),  # a constant rate after warm-up
        (Optim(warmup_lr=1e-2, warmup_epochs=0), None),  # never used
        (FinetuneOptim(), None),
    ],
)
def test_rates_may_not_contradict_each_other(optim: Optim, said: str | None) -> None:
    found = contradiction(optim)
    assert found is None if said is None else found is not None and found.startswith(said)


def warned(videos: int = 5000, **sections: object) -> list[str]:
    recipe = Recipe.model_validate({"data": {"store": "x"}, "mask": {"kind": "tube"}, **sections})
    schedule = derive_schedule(recipe.optim, videos=videos, repeats=1, world=1)
    return doubts(recipe, recipe.optim, schedule)


def test_what_is_seldom_meant_is_said() -> None:
    assert warned() == []
    (said,) = warned(optim={"epochs": 10})
    assert said.startswith(
        "all 20 steps are warm-up (`optim.warmup_epochs: 40`, `optim.epochs: 10`)"
    )
    (said,) = warned(videos=12)
    assert said.startswith("`optim.total_batch: 2048` is more than the 12 training videos")
    (said,) = warned(mask={"kind": "schedule", "to": {"kind": "adamae", "warmup": 1}})
    assert said.startswith("`mask.warmup: 1` makes all steps")


def test_a_discriminator_that_never_takes_part_is_said() -> None:
    coder = {"kind": "vq", "discriminator": {"start": 2000}}
    recipe = Recipe.model_validate({"data": {"store": "x"}, "tokenizer": coder})
    for videos, count in ((2048, 1), (6000, 0)):  # 800 steps, and 1600
        schedule = derive_schedule(recipe.optim, videos=videos * 2, repeats=1, world=1)
        found = doubts(recipe, recipe.optim, schedule)
        assert len(found) == count
        assert all("`tokenizer.discriminator.start: 2000` is not reached" in one for one in found)
