"""`Guard`: keeps a learned policy that still explores, and goes back to it after a collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

COLLAPSE = 0.5  # normalised entropy below which a policy shows the same few tokens to every clip
INTERVAL = 20  # updates between two copies


class Guard:
    """Remembers the last good state of a policy.

    Args:
        policy: The network.
        optimizer: Its optimiser, which forgets its moments when the policy is set back.
    """

    def __init__(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._policy = policy
        self._optimizer = optimizer
        self._good: dict[str, Tensor] | None = None
        self._checks = 0

    def check(self, entropy: Tensor) -> str | None:
        """Judge the policy by its entropy (1 = uniform), equal on all ranks.

        Returns:
            What is wrong with it, and whether it could be set back; None if it is good.
        """
        sound = torch.stack([one.isfinite().all() for one in self._policy.parameters()]).all()
        value, finite = torch.stack([entropy.detach().float(), sound.float()]).tolist()
        if not math.isfinite(value) and finite:
            return None  # the batch was at fault, and its update was left out
        if finite and value >= COLLAPSE:
            if self._checks % INTERVAL == 0:
                # On the CPU: a GPU has better uses for its memory.
                states = self._policy.state_dict().items()
                self._good = {name: value.to("cpu", copy=True) for name, value in states}
            self._checks += 1
            return None
        if self._good is not None:
            self._policy.load_state_dict(self._good)
        self._optimizer.state.clear()  # its momentum would lead straight back
        what = f"has collapsed: its normalised entropy is {value:.2f}, less than {COLLAPSE}"
        if not finite:
            what = "is not finite any more"
        back = "training goes on with its last good state"
        if self._good is None:
            back = "there is no good state of it to go back to"
        return f"the sampler's policy {what}; {back}"
