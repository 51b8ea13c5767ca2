import math

import pytest
import torch

from tatscli.engine.optim import build_optimizer, set_lr
from tatscli.engine.schedule import lr_at
from tatscli.errors import RecipeError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Optim
from tests.engine.toy import ToyModel


def test_only_matrices_are_decayed_and_layers_learn_at_their_rate() -> None:
    model = ToyModel()
    layer = {"layers.0": 0, "layers.1": 1, "layers.3": 2}
    optimizer = build_optimizer(
        model,
        Optim(weight_decay=0.05, base_lr=1.0),
        layer_decay=0.5,
        layer_of=lambda name: layer[name.rsplit(".", 1)[0]],
        layers=2,
    )
    set_lr(optimizer, 0.8)
    facts = {
        name: (group["weight_decay"], group["lr"])
        for name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert facts == {
        "layers.0.weight": (0.05, 0.2),
        "layers.0.bias": (0.0, 0.2),
        "layers.1.weight": (0.0, 0.4),
        "layers.1.bias": (0.0, 0.4),
        "layers.3.weight": (0.05, 0.8),
        "layers.3.bias": (0.0, 0.8),
    }


def test_learning_rate_follows_the_published_curve() -> None:
    """VideoMAE's cosine_scheduler: linspace to the peak, then half a cosine over the rest."""
    optim = Optim(epochs=10, total_batch=64, batch_per_device=64, warmup_epochs=2, warmup_lr=1e-6)
    schedule = derive_schedule(optim, videos=640, repeats=1, world=1)
    scale = 64 / 256
    rest = [
        1e-5 * scale + 0.5 * (1.5e-4 - 1e-5) * scale * (1 + math.cos(math.pi * i / 80))
        for i in range(80)
    ]
    warm = torch.linspace(1e-6 * scale, 1.5e-4 * scale, 20, dtype=torch.float64).tolist()
    assert schedule.total_steps == 100
    assert [lr_at(step, schedule) for step in range(100)] == pytest.approx(warm + rest)


def test_published_totals_give_published_rates() -> None:
    ssv2 = derive_schedule(Optim(total_batch=2048), videos=168_913, repeats=1, world=64)
    assert (ssv2.accumulation, ssv2.batch_per_device, ssv2.steps_per_epoch) == (1, 32, 82)
    assert ssv2.peak_lr == pytest.approx(1.2e-3)
    assert (
        derive_schedule(Optim(total_batch=2048), videos=168_913, repeats=1, world=8).accumulation
        == 8
    )
    one = derive_schedule(Optim(total_batch=384, batch_per_device=6), videos=5, repeats=2, world=1)
    assert (one.steps_per_epoch, one.lr_scale) == (1, 1.5)
    assert one.passes == 800 * 384 * 2 / 5


def test_a_total_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(RecipeError, match="`total_batch: 100` is not a multiple of 32 videos x 2"):
        derive_schedule(Optim(total_batch=100), videos=1000, repeats=1, world=2)
