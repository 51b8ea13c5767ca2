"""Tables of `bench_long.py`, and what its bytes say of ViT-B in a memory of 80 GB.

Memory of a step is taken as linear in the tokens of the encoder and those predicted, and with plain
attention in the pairs of tokens besides, times heads: the coefficients are least squares over what
was measured. Of what they were not fitted to, the tables show measured against computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Line = dict[str, Any]

MEMORY = 80e9
BUDGETS, FRAMES = (100, 50, 25, 15), (16, 32, 64, 96, 128)
HEADS = {"half": (6, 3), "full": (12, 6)}  # of encoder and decoder
SITES, SHOWN = 196, 20  # of a slice of `full`: tokens, and those a tube of 0.9 shows
TUBELET = 2
MIB = 2**20
FITTED = 16  # settings of ViT-B that the fit needs
HELD_OUT = 64  # frames: from here on ViT-B checks what shorter clips gave


class Found:
    """Figures of one machine, found by what they are figures of."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)

    def all(self, **wanted: Any) -> list[Line]:
        """Return the lines that have all of these."""
        return [one for one in self.lines if wanted.items() <= _comparable(one).items()]

    def seconds(self, **wanted: Any) -> float | None:
        """Return the median processor time of a step, or of a coding."""
        taken = [one["cpu"] for one in self.all(what="time", **wanted)]
        return statistics.median(taken) if taken else None

    def step(self, scale: str, frames: int, budget: int, **more: Any) -> float | None:
        """Return the median processor time of a step."""
        return self.seconds(
            **{"mask": "tube", "attention": "fused", **more}, **_(scale, frames, budget)
        )

    def mib(self, scale: str, frames: int, budget: int, **more: Any) -> float | None:
        """Return the peak memory of a step."""
        plain = {"mask": "tube", "attention": "fused", "checkpointing": False, "gradients": False}
        found = self.all(what="memory", **{**plain, **more}, **_(scale, frames, budget))
        return found[0]["mib"] if found else None

    def gflop(self, scale: str, frames: int, budget: int) -> float | None:
        """Return the operations of a step."""
        found = self.all(what="flop", **_(scale, frames, budget))
        return found[0]["gflop"] if found else None


def _(scale: str, frames: int, budget: int) -> dict[str, Any]:
    return {"scale": scale, "frames": frames, "budget": budget}


def _comparable(one: Line) -> Line:
    return {key: value for key, value in one.items() if not isinstance(value, dict)}


def tables(lines: Iterable[Line]) -> str:
    """Return all tables of every machine."""
    by_machine: dict[str, list[Line]] = {}
    for line in lines:
        by_machine.setdefault(str(line["machine"]), []).append(line)
    parts = []
    for name, own in by_machine.items():
        found = Found(own)
        loads = [one["load"] for one in own]
        parts += [
            f"{name}, load {min(loads)} to {max(loads)}",
            curve("seconds", found.step),
            curve("MiB", found.mib),
            masks(found),
            counts(found),
            vit_b(found),
            tokenizers(found),
            wanted(found),
            computed(found),
        ]
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay a table out as Markdown."""
    body = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_shown, row)) + " |" for row in body)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 1000
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


def ratio(one: float | None, other: float | None) -> float | None:
    """Return one by the other, where both are there."""
    return None if one is None or other is None else one / other


def curve(unit: str, figure: Callable[..., float | None]) -> str:
    """Lay out the curve of `half`."""
    rows = []
    for attention in ("fused", "plain"):
        for frames in FRAMES:
            values = [figure("half", frames, one, attention=attention) for one in BUDGETS]
            tokens = f"{frames} / {frames * 50:,}"
            rows.append([tokens, attention, *values, ratio(values[-1], values[0])])
    head = [f"{one} %" for one in BUDGETS]
    return table(["frames / tokens", f"attention, {unit}", *head, "15 / 100"], rows)


def masks(found: Found) -> str:
    """Lay out what other masks take."""
    rows = []
    for mask in ("tube", "mgm", "adamae", "tats"):
        seconds = found.step("half", 128, 15, mask=mask, part="masks")
        tube = found.step("half", 128, 15, part="masks")
        mib = found.mib("half", 128, 15, mask=mask)
        rows.append(
            [
                f"`{mask}`",
                seconds,
                ratio(seconds, tube),
                mib,
                ratio(mib, found.mib("half", 128, 15)),
            ]
        )
    return table(["mask", "seconds", "by tube", "MiB", "by tube"], rows)


def counts(found: Found) -> str:
    """Lay out the operations of ViT-B."""
    rows = []
    for scale in ("full", "half"):
        for frames in FRAMES:
            values = [found.gflop(scale, frames, one) for one in BUDGETS]
            rows.append([scale, frames, *values, ratio(values[-1], values[0])])
    return table(["GFLOP", "frames", *(f"{one} %" for one in BUDGETS), "15 / 100"], rows)


def vit_b(found: Found) -> str:
    """Lay out what steps of ViT-B took."""
    rows = [
        [frames, budget, seconds]
        for frames in FRAMES
        for budget in (100, 15)
        if (seconds := found.step("full", frames, budget)) is not None
    ]
    return table(["frames", "%", "seconds"], rows)


def tokenizers(found: Found) -> str:
    """Lay out what coding a clip of 128 frames takes beside a step at 15 %."""
    step, operations = found.step("full", 128, 15), found.gflop("full", 128, 15)
    rows = []
    for name in "abc":
        one = found.all(what="time", tokenizer=name)
        counted = found.all(what="flop", tokenizer=name)
        if not one or not counted:
            continue
        windows = 128 / 16
        seconds = (found.seconds(tokenizer=name) or 0.0) * windows / one[0]["windows"]
        gflop = windows * (counted[0]["encoder"] + counted[0]["scorer"])
        rows.append([name, gflop, ratio(gflop, operations), seconds, ratio(seconds, step)])
    return table(["tokenizer", "GFLOP", "of a step", "seconds", "of a step"], rows)


def wanted(found: Found) -> str:
    """Hold the figures against what was wanted of them at 128 frames."""
    rows = []
    time, memory, count = found.step, found.mib, found.gflop
    for scale in ("half", "full"):
        few, all_ = (scale, 128, 15), (scale, 128, 100)
        rows += [
            [f"{scale}: time, 15 / 100 %", 0.45, ratio(time(*few), time(*all_))],
            [f"{scale}: operations, 15 / 100 %", "", ratio(count(*few), count(*all_))],
            [f"{scale}: time, 128 / 64", 2.3, ratio(time(*few), time(scale, 64, 15))],
            [f"{scale}: operations, 128 / 64", "", ratio(count(*few), count(scale, 64, 15))],
        ]
    for attention, least in (("plain", 0.3), ("fused", "")):
        few_mib, all_mib = (memory("half", 128, one, attention=attention) for one in (15, 100))
        rows.append([f"half: memory, {attention}", least, ratio(few_mib, all_mib)])
    return table(["", "wanted at most", "found"], rows)


class Bytes:
    """Bytes of a step of ViT-B, fitted."""

    def __init__(self, found: Found, *, checkpointing: bool) -> None:
        tube = {"what": "memory", "mask": "tube", "checkpointing": checkpointing}
        full = {**tube, "scale": "full", "gradients": True}
        short = [one for one in found.all(**full, attention="fused") if one["frames"] < HELD_OUT]
        self.fixed, self.seen, self.asked = _least_squares(
            [(1, one["visible"], one["predicted"]) for one in short],
            [one["mib"] * MIB for one in short],
        )
        self.state = 16 * short[0]["parameters"]  # weights, gradients and moments
        rows, more = [], []
        for plain in found.all(attention="plain", **tube):
            fused = found.mib(
                *(plain[key] for key in ("scale", "frames", "budget")),
                gradients=plain["gradients"],
                checkpointing=checkpointing,
            )
            # Where gradients are more than all else, a step without them shows nothing of scores.
            least = 0 if plain["gradients"] else 4.4 * plain["parameters"] / MIB
            if fused is not None and least < fused and plain["frames"] != HELD_OUT:
                rows.append(self._pairs(plain["scale"], plain["visible"], plain["predicted"]))
                more.append((plain["mib"] - fused) * MIB)
        if checkpointing:  # one block at a time, and those of the decoder have more pairs
            self.pairs = (0.0, _least_squares([row[1:] for row in rows], more)[0])
        else:
            encoder, decoder = _least_squares(rows, more)
            self.pairs = (encoder, decoder)

    def __call__(self, visible: float, predicted: float, *, plain: bool, clips: int = 1) -> float:
        """Return the bytes of a step, without weights, gradients and moments."""
        clip = self.seen * visible + self.asked * predicted
        if plain:
            own = self._pairs("full", visible, predicted)
            clip += sum(one * other for one, other in zip(self.pairs, own, strict=True))
        return self.fixed + clips * clip

    def frames(self, budget: int, *, plain: bool, clips: int) -> int:
        """Return the most frames, a multiple of 16, that fit."""
        frames = 0
        while self.state + self(*tokens(frames + 16, budget), plain=plain, clips=clips) <= MEMORY:
            frames += 16
        return frames

    @staticmethod
    def _pairs(scale: str, visible: float, predicted: float) -> tuple[float, float]:
        encoder, decoder = HEADS[scale]
        return encoder * visible**2, decoder * (visible + predicted) ** 2


def tokens(frames: int, budget: int) -> tuple[int, int]:
    """Return how many tokens of `full` are seen, and how many predicted."""
    slices = frames // TUBELET
    seen = slices * SHOWN
    return seen, min(round(budget * slices * SITES / 100), slices * SITES - seen)


def computed(found: Found) -> str:
    """Work out how many frames fit into 80 GB, and hold the fit against what was measured."""
    if len(found.all(what="memory", scale="full", gradients=True)) < FITTED:
        return "memory of ViT-B: not enough was measured yet"
    fits = {again: Bytes(found, checkpointing=again) for again in (False, True)}
    rows = [
        [
            name,
            "yes" if again else "no",
            clips,
            *(fits[again].frames(budget, plain=name == "plain", clips=clips) for budget in BUDGETS),
        ]
        for name in ("plain", "fused")
        for again in (False, True)
        for clips in (1, 4, 8)
    ]
    at_128 = []
    for plain in (True, False):
        for again in (False, True):
            mib = [fits[again](*tokens(128, one), plain=plain) / MIB for one in BUDGETS]
            name = "plain" if plain else "fused"
            at_128.append([name, "yes" if again else "no", *mib, mib[-1] / mib[0]])
    held = []
    for one in found.all(what="memory", scale="full", gradients=True):
        fit = fits[one["checkpointing"]]
        value = fit(one["visible"], one["predicted"], plain=one["attention"] == "plain")
        setting = [one[key] for key in ("frames", "budget", "attention", "checkpointing")]
        held.append([*setting, one["mib"], value / MIB])
    words = [
        f"checkpointing {again}: {fit.fixed / MIB:.0f} MiB + {fit.seen:.0f} B a token seen"
        f" + {fit.asked:.0f} B a token predicted; plain: B a pair and head {fit.pairs}"
        for again, fit in fits.items()
    ]
    budgets = [f"{one} %" for one in BUDGETS]
    return "\n\n".join(
        [
            *words,
            table(["frames in 80 GB, computed", "checkpointing", "clips", *budgets], rows),
            table(["MiB, 128 frames, computed", "checkpointing", *budgets, "15 / 100"], at_128),
            table(["frames", "%", "attention", "checkpointing", "MiB", "computed"], held),
        ]
    )


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    import torch

    left = torch.tensor(rows, dtype=torch.float64)
    scale = left.abs().amax(dim=0)
    right = torch.tensor(values, dtype=torch.float64)[:, None]
    return (torch.linalg.lstsq(left / scale, right).solution[:, 0] / scale).tolist()
