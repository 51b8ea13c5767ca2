"""`LearnedMasker`: what learned samplers share: drawing, optimiser, resuming, guard rails.

Shapes: B batch, N tokens, K visible, M predicted, D encoder width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tatscli.data.motion import MotionField
from tatscli.masking.base import Masker
from tatscli.masking.draw import gumbel_top_k, visible_count
from tatscli.masking.learning.guard import Guard
from tatscli.masking.learning.policy import Policy, PolicyOutput
from tatscli.masking.plan import MaskPlan

BETAS = (0.9, 0.95)


@dataclass(slots=True)
class Rollout:
    """One batch between `plan` and `learn`.

    Attributes:
        tokens_BND: The network's input; a leaf of the graph if its gradient is wanted.
        output: The network's answer with its graph, so that the first update needs no second
            forward pass; None where batches wait in a buffer.
        value_B: What the critic said, without gradient.
        old_log_p_BN: Log-probabilities the tokens were drawn with: the policy's, or uniform in the
            warm-up.
        order_BK: The visible tokens in the order they were drawn.
    """

    tokens_BND: Tensor
    output: PolicyOutput | None
    value_B: Tensor | None
    old_log_p_BN: Tensor
    order_BK: Tensor


class LearnedMasker(Masker):
    """Draws the visible tokens of a clip from a learned policy.

    The two learners are kept apart: a draw has no gradient, errors come detached, and so do the
    tokens unless `detach: false` asks for the gradient of the sampler's loss on them
    (`token_gradient_BND`). Each `learn` is one complete update on one micro-batch, so `lr_scale`
    counts the videos in it over all devices: the steps of an accumulated batch then add up to the
    step of the whole.

    Args:
        config: The recipe's `mask` section.
        grid: Tokens along time, height and width.
        width: Width D of the tokens given.
        lr_scale: Factor on `config.base_lr`: videos per update / 256.

    Attributes:
        temperature: Divides the logits; 1 in training, others are for looking at a policy.
    """

    config: Any  # a section derived from `schema.LearnedMask`
    needs_embeddings = True
    keeps_graph = True
    warms_up_uniformly = True

    def __init__(
        self,
        config: Any,
        *,
        grid: tuple[int, int, int],
        width: int,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(grid, config.ratio)
        self.config = config
        self.groups = grid[0] if config.quota else 1
        self.visible = self.groups * visible_count(self.tokens // self.groups, config.ratio)
        self.reaches_encoder = not config.detach
        self.temperature = 1.0
        self.policy = self.build_policy(width)
        self.peak_lr = config.base_lr * lr_scale
        self.optimizer = torch.optim.AdamW(
            self.policy.decay_groups(config.weight_decay), lr=self.peak_lr, betas=BETAS
        )
        self.guard = Guard(self.policy, self.optimizer)
        self.warming_up = False
        self._rollout: Rollout | None = None
        # Autocast as it was when planning, so that later passes of a batch round alike.
        self._precision: AbstractContextManager[Any] = nullcontext()
        self._notices: list[str] = []

    @classmethod
    def from_recipe(
        cls, config: Any, *, grid: tuple[int, int, int], width: int, lr_scale: float = 1.0
    ) -> Self:
        """Build from the recipe's `mask` section."""
        return cls(config, grid=grid, width=width, lr_scale=lr_scale)

    def build_policy(self, width: int) -> Policy:
        """Build the network that the recipe describes, for tokens of a width."""
        raise NotImplementedError

    def schedule(self, step: int, total_steps: int) -> None:
        """Set warm-up and learning rate: a linear rise, then a cosine to zero."""
        warmup = self.config.warmup * total_steps
        self.warming_up = step < warmup
        if self.warming_up:
            factor = min(1.0, (step + 1) / warmup)
        else:
            left = max(1.0, total_steps - warmup)
            factor = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / left)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Draw visible tokens; in training mode the rollout is kept for `learn`."""
        tokens_BND = tokens_BND.detach()
        self._precision = _autocast_now(tokens_BND.device)
        graph = self.training and self.keeps_graph
        if graph and self.reaches_encoder:
            tokens_BND.requires_grad_()
        with torch.set_grad_enabled(graph):
            output = self.policy(tokens_BND, self.temperature)
        log_p_BN = self._drawable(output.log_p_BN.detach())
        order_BK = self._draw(log_p_BN, generator)
        if self.training:
            value_B = None if output.value_B is None else output.value_B.detach()
            kept = output if graph else None
            self._rollout = Rollout(tokens_BND, kept, value_B, log_p_BN, order_BK)
        return MaskPlan.from_visible(order_BK, self.tokens)

    def _drawable(self, log_p_BN: Tensor) -> Tensor:
        """Return what to draw with: uniform in the warm-up or without a finite policy.

        Without one the batch's update is never applied: its gradient is not finite either, and
        `learn` counts it as skipped.
        """
        uniform_BN = torch.full_like(log_p_BN, -math.log(self.tokens))
        if self.training and self.warming_up and self.warms_up_uniformly:
            return uniform_BN
        return torch.where(log_p_BN.isfinite().all(dim=1, keepdim=True), log_p_BN, uniform_BN)

    def _draw(self, log_p_BN: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the visible tokens, equally many of each group: (B, K), in the order drawn."""
        clips, size = len(log_p_BN), self.tokens // self.groups
        log_p_RS = log_p_BN.reshape(clips * self.groups, size)
        order_RK = gumbel_top_k(log_p_RS, self.visible // self.groups, generator)
        first_G1 = torch.arange(self.groups, device=order_RK.device)[:, None] * size
        return (order_RK.unflatten(0, (clips, self.groups)) + first_G1).flatten(1)

    def _take_rollout(self, plan: MaskPlan, error_BM: Tensor) -> Rollout:
        """Return the rollout of the last plan.

        Raises:
            RuntimeError: If no plan was made in training mode since the last call.
            ValueError: If the errors do not belong to the plan.
        """
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            raise RuntimeError("learn() needs a plan() made in training mode before each call")
        if error_BM.shape != plan.predict_BM.shape:
            raise ValueError(
                f"errors of shape {tuple(error_BM.shape)} do not belong to a plan that predicts "
                f"{tuple(plan.predict_BM.shape)} tokens"
            )
        return rollout

    def _step(self, loss: Tensor) -> Tensor:
        """Update alike on every rank, unless the norm, which is returned, is not finite."""
        self.optimizer.zero_grad()
        # An outer autocast would reach into the backward pass and round its products.
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
        _average_gradients(self.policy)
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_grad or math.inf)
        # Averaging spreads what is not finite on one rank to all, so all decide alike.
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _collect_token_gradient(self, rollout: Rollout) -> None:
        """Keep what the sampler's loss asks of the tokens, for the encoder's backward pass."""
        gradient = rollout.tokens_BND.grad
        usable = self.reaches_encoder and gradient is not None and gradient.isfinite().all()
        self.token_gradient_BND = gradient if usable else None

    def _watch(self, entropy: Tensor) -> float:
        """Go back to the last good policy if this one has collapsed; return 1 if so."""
        problem = self.guard.check(mean_over_ranks(entropy))
        if problem is not None:
            self._notices.append(f"{problem}; {self._remedy()}")
        return float(problem is not None)

    def _remedy(self) -> str:
        return "a smaller `mask.base_lr` may help"

    def notices(self) -> list[str]:
        """Return what the user should know since the last call."""
        notices, self._notices = self._notices, []
        return notices

    @torch.no_grad()
    def scores_BN(self, tokens_BND: Tensor) -> Tensor:
        """Return each token's probability to be drawn first: (B, N), float32; rows add up to 1."""
        return self.policy(tokens_BND, self.temperature).log_p_BN.exp()

    def macs(self) -> int:
        """Count the multiply-accumulates of one forward pass of the policy per clip."""
        return self.policy.macs()

    def training_state(self) -> dict[str, Any]:
        """Return AdamW's moments and step counts as `<parameter>/<moment>`."""
        return {
            f"{name}/{moment}": value.detach()
            for name, parameter in self.policy.named_parameters()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
        parameters = dict(self.policy.named_parameters())
        self.optimizer.state.clear()
        for key, value in state.items():
            name, moment = key.rsplit("/", 1)
            parameter = parameters[name]
            # AdamW keeps its step count on the CPU whatever the parameters' device.
            place = "cpu" if moment == "step" else parameter.device
            self.optimizer.state[parameter][moment] = value.to(place, copy=True)


def _autocast_now(device: torch.device) -> torch.autocast:
    """Return a context that restores the autocast state of this moment."""
    kind = device.type
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
    )


def read_metrics(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers in one transfer; those that are not finite are left out."""
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return {k: v for k, v in zip(metrics, values, strict=True) if math.isfinite(v)}


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; the tensor itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their mean over all processes, in one transfer."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    mean = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
