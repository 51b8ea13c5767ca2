"""`Guard`: keeps a learned policy that still explores, and goes back to it after a collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tatscli.engine import distributed

COLLAPSE = 0.5  # normalised entropy below which a policy shows the same few tokens to every clip
INTERVAL = 20  # steps between two looks, each of which waits for the device


class Guard:
    """Remembers the last good state of a policy.

    Args:
        policy: The network.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy
        self._good: dict[str, Tensor] = {}
        self._heard: list[Tensor] = []

    def hear(self, entropy: Tensor) -> None:
        """Take the entropy of the policy on a micro-batch, a scalar where 1 is uniform; nothing is
        read yet."""
        self._heard.append(entropy.detach().float())

    def after_step(self, done: int) -> str | None:
        """Check the policy every `INTERVAL` steps and until it was good once, on all ranks alike.

        Only entropies of this very step count, since they are not in a checkpoint: a mask that is
        not used in every step is checked at the next due step that uses it.

        Returns:
            What is wrong with it, and whether it could be set back; None if it is good, or if
            there was no time to look.
        """
        heard, self._heard = self._heard, []
        if not heard or (done % INTERVAL and self._good):
            return None
        entropy = distributed.mean(torch.stack(heard).mean())
        sound = nn.utils.get_total_norm(self._policy.parameters()).isfinite()
        value, finite = torch.stack([entropy, sound.float()]).tolist()
        if not math.isfinite(value) and finite:
            return None  # the batch was at fault, and its update was left out
        if finite and value >= COLLAPSE:
            # On the CPU: a GPU has better uses for its memory.
            states = self._policy.state_dict().items()
            self._good = {name: one.to("cpu", copy=True) for name, one in states}
            return None
        if self._good:
            self._policy.load_state_dict(self._good)
        what = f"has collapsed: its normalised entropy is {value:.2f}, below {COLLAPSE}"
        if not finite:
            what = "has weights that are not finite"
        back = "training continues from its last good state"
        if not self._good:
            back = "there is no earlier good state to restore"
        return f"the sampler's policy {what}; {back}"

    def tensors(self) -> dict[str, Tensor]:
        """Return the last good state."""
        return dict(self._good)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self._good = {name: one.to("cpu", copy=True) for name, one in tensors.items()}
