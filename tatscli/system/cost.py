"""What a system costs, counted by torch while no number is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.nn.frozen import Frozen
from tatscli.recipe.schema import Recipe
from tatscli.system.system import System, build_system


def count_parameters(module: torch.nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(work: Callable[[], object], *, gradients: bool = False) -> int:
    """Count the floating-point operations of products in `work`, two for a multiply-accumulate.

    Args:
        work: Perhaps on tensors without memory.
        gradients: Whether it may make a graph, for a backward pass that it takes.
    """
    counter = FlopCounterMode(display=False)
    # Plain attention, which every version of torch counts.
    with sdpa_kernel(SDPBackend.MATH), counter, torch.set_grad_enabled(gradients):
        work()
    return int(counter.get_total_flops())


def system_cost(recipe: Recipe) -> tuple[System, dict[str, int]]:
    """Build a system whose tensors have shapes but no memory, and count a forward pass of a clip.

    Returns:
        The system, and the operations of `encoder`, `head`, where mask or `predict` rule reads all
        patch embeddings of `sampler`, where targets ask networks of their own of `targets`, and
        where the `predict` rule asks one that no target has asked of `selection`.
    """
    with torch.device("meta"):
        # Tokenizers were read from disk and have numbers yet.
        system = build_system(recipe).to("meta")
        return system, _flops(system)


def _flops(system: System) -> dict[str, int]:
    (t, h, w), tokens, form = system.form.grid, system.form.tokens, system.form
    video_BCTHW = torch.zeros(
        1, 3, t * form.tubelet, h * form.patch, w * form.patch, dtype=torch.uint8
    )
    nowhere = torch.zeros(1, dtype=torch.bool)
    frames = t * form.tubelet
    motion = MotionField(
        torch.zeros(1, frames, h, w, 2),
        torch.zeros(1, frames, h, w),
        nowhere[:, None].expand(1, frames),
        nowhere,
        nowhere,
        form.patch,
    )
    clip = system.clip(video_BCTHW, motion=motion)
    visible_BK = torch.arange(system.masker.visible)[None]
    plan = MaskPlan(visible_BK, torch.arange(tokens - system.predict.budget, tokens)[None])
    latents_BKD = torch.zeros(1, visible_BK.shape[1], system.encoder.width)

    def encode() -> object:
        return system.encoder(system.encoder.embed(clip.cubes(visible_BK)), visible_BK)

    def guess() -> object:
        return system.autoencoder.head(
            clip, latents_BKD, plan, lambda index: system.autoencoder.look(clip, index)
        )

    flops = {"encoder": count_flops(encode), "head": count_flops(guess)}
    # What the store answers costs no step anything.
    targets = [one for one in system.targets.values() if getattr(one, "cached", None) is None]
    asked = {"targets": count_flops(lambda: [one.of(clip, plan.predict_BM) for one in targets])}
    rule = system.predict
    if rule.cached is None and any(isinstance(one, Frozen) for one in rule.modules()):
        asked["selection"] = count_flops(lambda: rule.saliency_BN(clip))
    if system.needs_embeddings:
        flops["sampler"] = count_flops(lambda: system.plan(clip, Draws(0)))
    return flops | {name: count for name, count in asked.items() if count}
