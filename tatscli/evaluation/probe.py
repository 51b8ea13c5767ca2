"""Training probes on precomputed features, and choosing one without the videos to be scored.

Shapes: R videos, V views of a video, X numbers of a feature, B batch, L classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.engine import distributed
from tatscli.engine.optim import decays, fused_adamw, set_lr
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.evaluation.features import Features
from tatscli.evaluation.shots import hold_out
from tatscli.recipe.schema import Probe
from tatscli.seeding import seed_of

WARMUP = 0.05  # share of the steps with a linearly rising learning rate; then it falls as a cosine


@dataclass(frozen=True, slots=True)
class Trial:
    """A learning rate and a weight decay, and their scores.

    Attributes:
        rate: Peak learning rate.
        decay: Weight decay.
        top1: Top-1 accuracy on the held-out videos; None if none were held out.
        loss: Cross-entropy on the held-out videos; also None if it is not finite.
    """

    rate: float
    decay: float
    top1: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class ChosenProbe:
    """A probe that was chosen and trained.

    Attributes:
        probe: The probe, in evaluation mode.
        choice: Its learning rate and weight decay.
        choices: All pairs, with their held-out scores.
        held_out: Number of held-out videos.
    """

    probe: nn.Module
    choice: Trial
    choices: list[Trial]
    held_out: int


def choose_probe(
    start: nn.Module, data: Features, settings: Probe, *, seed: int, here: Session
) -> ChosenProbe:
    """Train a probe for every learning rate and weight decay, choose one on videos held out of
    `data`, and train it again on all of `data`.

    The best has the highest held-out top-1, then the lowest loss, then comes first. Trials are
    distributed over the ranks; a trial does not depend on the others.

    Args:
        start: The initial probe.
        data: Features of labelled videos, without those to be scored.
        settings: The recipe's `evaluate.probe`.
        seed: Seed of the split and of the order.
        here: Device and peers.

    Raises:
        DataError: If there are several trials and no video can be held out; or as in
            `train_probes`.
    """
    choices = [Trial(rate, decay) for rate, decay in product(settings.rates, settings.decays)]
    everyone, held = torch.arange(len(data.label_R)), 0
    if len(choices) > 1:
        kept_R, held_R = hold_out(
            data.label_R, settings.held_out, seed=seed, source_R=data.source_R
        )
        held = len(held_R)
        mine = choices[here.world.rank :: here.world.size]
        probes = train_probes(start, data, kept_R, mine, settings, seed=seed, here=here)
        judged = {
            (choice.rate, choice.decay): judge(probe, data, held_R, choice, here.device)
            for choice, probe in zip(mine, probes, strict=True)
        }
        for other in distributed.gathered([judged]):
            judged |= other
        choices = [judged[choice.rate, choice.decay] for choice in choices]
    best = max(choices, key=_merit)
    (probe,) = train_probes(start, data, everyone, [best], settings, seed=seed, here=here)
    return ChosenProbe(probe.eval(), best, choices, held)


def _merit(choice: Trial) -> tuple[float, float]:
    return choice.top1 or 0.0, -math.inf if choice.loss is None else -choice.loss


def train_probes(
    start: nn.Module,
    data: Features,
    video_R: Tensor,
    choices: Sequence[Trial],
    settings: Probe,
    *,
    seed: int,
    here: Session,
) -> list[nn.Module]:
    """Train a copy of a probe for each trial, side by side on the same batches.

    Args:
        start: The initial probe.
        data: Features.
        video_R: Indices of the videos to train on.
        choices: Learning rate and weight decay of each trial.
        settings: Passes and batch size.
        seed: Seed of the order and of the views.
        here: Device and reporter.

    Returns:
        The probes, in the order of the trials.

    Raises:
        DataError: If a batch has a single video, on which BatchNorm cannot work.
    """
    size = min(settings.batch, len(video_R))
    if size < 2 and any(isinstance(one, nn.BatchNorm1d) for one in start.modules()):
        raise DataError(
            f"a probe with BatchNorm needs two videos in a batch, and with `evaluate.probe.batch: "
            f"{settings.batch}` and {len(video_R)} training videos there is one",
            hint="raise it, or label more videos; the attentive probe "
            "`evaluate.probe.form=vjepa` has no BatchNorm",
        )
    probes = [copy.deepcopy(start).to(here.device).train() for _ in choices]
    if not probes:
        return []
    groups = [
        {"params": [one], "lr_scale": choice.rate, "weight_decay": choice.decay * decays(name, one)}
        for probe, choice in zip(probes, choices, strict=True)
        for name, one in probe.named_parameters()
    ]
    optimizer = fused_adamw(groups, lr=1.0)
    steps = len(video_R) // size
    total, views = settings.epochs * steps, data.value_RVX.shape[1]
    bar = here.reporter.progress(total=total, description="probes", unit="step")
    with bar:
        for step in range(total):
            epoch, part = divmod(step, steps)
            if part == 0:
                generator = torch.Generator().manual_seed(seed_of("probe", seed, epoch))
                order_R = video_R[torch.randperm(len(video_R), generator=generator)]
                view_R = torch.randint(views, (len(video_R),), generator=generator)
            some = slice(part * size, (part + 1) * size)
            feature_BX = data.value_RVX[order_R[some], view_R[some]].to(here.device).float()
            label_B = data.label_R[order_R[some]].to(here.device)
            set_lr(optimizer, _height(step, total))
            for probe in probes:  # one after the other, so that only one graph is in memory
                F.cross_entropy(probe(feature_BX), label_B).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
    return probes


def _height(step: int, total: int) -> float:
    """Return the learning rate of a step as a share of the peak."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@torch.inference_mode()
def judge(
    probe: nn.Module, data: Features, video_R: Tensor, choice: Trial, device: torch.device
) -> Trial:
    """Return a trial with the scores of its probe on some videos, averaged over views.

    The top-1 of a probe whose scores are not finite is 0.
    """
    probe.eval()
    share_RL = torch.cat([_shares(probe, data, part_B, device) for part_B in video_R.split(64)])
    if not share_RL.isfinite().all():
        return Trial(choice.rate, choice.decay, top1=0.0)
    label_R = data.label_R[video_R]
    loss = F.nll_loss(share_RL.clamp(min=1e-12).log(), label_R)
    right = (share_RL.argmax(dim=1) == label_R).double().mean()
    return Trial(choice.rate, choice.decay, top1=float(right), loss=float(loss))


def _shares(probe: nn.Module, data: Features, video_B: Tensor, device: torch.device) -> Tensor:
    value_BVX = data.value_RVX[video_B].to(device).float()
    score_VL = probe(value_BVX.flatten(0, 1))
    return score_VL.softmax(dim=1).unflatten(0, value_BVX.shape[:2]).mean(dim=1).cpu()
