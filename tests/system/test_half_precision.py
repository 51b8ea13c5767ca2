"""What stays in float32 while a step runs in half precision: softmax, norms, losses and PPO.

A GPU's autocast sees to most of that, a CPU's does not: here it is the code itself that must.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tatscli.draws import Draws
from tatscli.engine.device import autocast
from tatscli.nn.class_loss import ClassLoss
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Discriminator, Recipe
from tatscli.system.system import build_system
from tatscli.tasks.pretrain import step
from tatscli.tokenizer.adversary import Adversary
from tatscli.tokenizer.base import pictures_of
from tatscli.tokenizer.build import build_tokenizer
from tatscli.tokenizer.perceptual import PerceptualLoss
from tests.system.test_no_waits import LEARNED, MASKS, TARGETS, host_batch, recipe_of

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)
EXACT = {
    *("_softmax", "_log_softmax", "_safe_softmax", "logsumexp", "softplus"),
    *("native_layer_norm", "native_batch_norm", "native_group_norm", "linalg_vector_norm"),
    *("exp", "log", "log1p", "expm1", "pow", "sqrt", "rsqrt", "var", "std", "mean"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy", "nll_loss_forward"),
}


class Exact(TorchDispatchMode):
    """Refuses half precision where it would round what matters."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in EXACT:
            given = [one for one in args if isinstance(one, Tensor)]
            assert all(one.dtype not in HALF for one in given), f"{func} in half precision"
        return func(*args, **(kwargs or {}))


def assert_full(values: Mapping[str, Tensor | float]) -> None:
    halves = [k for k, one in values.items() if isinstance(one, Tensor) and one.dtype in HALF]
    assert halves == []


TWICE = {"kind": "tats", "trunk": "mha", "critic": "separate"} | LEARNED
STEPS: list[tuple[dict[str, Any], str, list[dict[str, Any]], str]] = [
    ({"kind": "tube"}, "decoder", TARGETS[0], "all"),
    ({"kind": "mgm"}, "regressor", TARGETS[2], "random"),
    ({"kind": "adamae"} | LEARNED, "decoder", TARGETS[0], "all"),
    ({"kind": "tats", "epochs": 2} | LEARNED, "regressor", TARGETS[1], "all"),
    (
        {"kind": "tats", "trunk": "mha", "critic": "separate"} | LEARNED,
        "decoder",
        TARGETS[0],
        "all",
    ),
    ({"kind": "tube"}, "decoder", [{"kind": "hog", "cell": 2}, {"kind": "motion"}], "all"),
    ({"kind": "tube"}, "decoder", [{"kind": "ema"}], "all"),
    (MASKS["everest"] | {"kind": "everest"}, "decoder", TARGETS[0], "everest"),
]


@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
@pytest.mark.parametrize(("mask", "head", "targets", "predict"), STEPS)
def test_softmax_norms_losses_and_ppo_of_a_step_are_full(
    mask: dict[str, Any],
    head: str,
    targets: list[dict[str, Any]],
    predict: str,
    dtype: torch.dtype,
) -> None:
    recipe = recipe_of(mask, head, targets, predict)
    system = build_system(recipe).train()
    system.masker.learners(derive_schedule(recipe.optim, videos=8, repeats=1, world=1))
    halves = list[torch.dtype]()
    watched = system.encoder.get_submodule("blocks.0.mlp.fc1")
    watched.register_forward_hook(lambda module, given, made: halves.append(made.dtype))
    with Exact():
        with autocast(CPU, dtype):
            lesson = step(system, host_batch(recipe), Draws(0))
        assert lesson.loss is not None and lesson.loss.dtype == torch.float32
        lesson.loss.backward()
        assert_full(lesson.metrics | system.masker.after_step(1, 10).metrics)
    assert halves[0] == dtype  # the layers themselves are not


@pytest.mark.parametrize("head", [{}, {"pool": "attention", "queries": 2}, {"pool": "cls"}])
def test_a_classifier_and_its_loss_are_full(head: dict[str, Any]) -> None:
    recipe = recipe_of({"kind": "tube"}, "decoder", TARGETS[0], "all")
    settings = recipe.finetune.model_copy(
        update={"head": recipe.finetune.head.model_copy(update=head)}
    )
    recipe = recipe.model_copy(update={"finetune": settings})
    model = build_classifier(recipe, classes=3).train()
    with Exact():
        with autocast(CPU, torch.bfloat16):
            scores = model(torch.randn(2, 3, 4, 16, 16), by_head=True)
            loss, _ = ClassLoss({}, {}, smoothing=0.1)(scores, torch.full((2, 3), 1 / 3))
        assert loss.dtype == torch.float32 and scores[0].dtype == torch.bfloat16
        loss.backward()


TOKENIZERS: list[dict[str, Any]] = [
    {"kind": "vq", "stride": 4, "widths": [8], "blocks": 1, "codes": 6, "code_width": 2},
    {"kind": "fsq", "stride": 4, "widths": [8], "blocks": 1, "levels": [3, 4], "entropy": 0.1},
    {
        **{"kind": "adaptive", "stride": 4, "widths": [8], "blocks": 1, "levels": [3, 4]},
        **{"keep": 2, "scorer_width": 8, "tubelet": 2},
    },
]


@pytest.mark.parametrize("loss", ["hinge", "nonsaturating"])
@pytest.mark.parametrize("section", TOKENIZERS, ids=lambda one: one["kind"])
def test_a_tokenizer_and_its_discriminator_are_full(section: dict[str, Any], loss: str) -> None:
    data = {"store": "", "frames": 4, "size": 16, "sampling": {"stride": 1}}
    recipe = Recipe.model_validate({"data": data, "tokenizer": section})
    model = build_tokenizer(recipe).train()
    adversary = Adversary(Discriminator(width=8, layers=1, loss=loss), dims=3 if model.whole else 2)
    true = torch.rand(2, 3, 4, 16, 16)
    with Exact():
        with autocast(CPU, torch.bfloat16):
            found = model(true)
            shown, real = (
                one if model.whole else pictures_of(one)
                for one in (found.video_BCTHW.float(), true)
            )
            terms = {
                **found.losses,
                "judge": adversary.judge(shown),
                "loss": adversary.loss(shown, real),
                "slope": adversary.slope(real),
            }
            assert_full(terms)
        torch.stack([*terms.values()]).sum().backward()


def test_a_perceptual_loss_squares_no_half_numbers() -> None:
    """Features of hundreds overflow fp16 as soon as they are squared."""
    loss = PerceptualLoss.__new__(PerceptualLoss)
    nn.Module.__init__(loss)
    layer = nn.Conv2d(3, 4, 1)
    nn.init.constant_(layer.weight, 300.0)
    loss.network, loss.stages = nn.Sequential(layer), (0,)
    loss.mean_C11, loss.std_C11 = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    pictures, true = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    with Exact(), autocast(CPU, torch.float16):
        distance = loss(pictures, true)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, loss(pictures, true), rtol=0.1, atol=1e-3)


def test_what_is_rounded_is_found() -> None:
    with Exact(), autocast(CPU, torch.bfloat16):
        scores = nn.Linear(4, 4)(torch.randn(2, 4))
        scores.softmax(-1, torch.float32)
        for rounded in (lambda: scores.softmax(-1), scores.mean, lambda: nn.LayerNorm(4)(scores)):
            with pytest.raises(AssertionError, match="in half precision"):
                rounded()
