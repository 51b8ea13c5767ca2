"""`run.compile`: the same numbers and names, and blocks that share what was compiled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tatscli.console import Reporter
from tatscli.draws import Draws
from tatscli.engine.parallel import compile_blocks
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Data, Finetune, Model, RandomMask, Recipe
from tatscli.system.system import System, build_system
from tatscli.tasks.pretrain import pretrain

Load = Callable[..., LoadedRecipe]

HEADS = {
    "decoder": "head={kind: decoder, depth: 1}",
    "regressor": "head={kind: regressor, depth: 1, regressor_depth: 1, alignment: 1}",
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget what was compiled before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_compiled_steps_equal_plain_ones(
    load: Load, reporter: Reporter, fresh: None, head: str
) -> None:
    lines, tensors = [], []
    for compiled in ("false", "true"):
        words = ("run.max_steps=3", "optim.warmup_epochs=0", "mask.kind=tube", HEADS[head])
        loaded = load(*words, f"run.compile={compiled}")
        run = Path(pretrain(loaded, reporter=reporter, out=f"runs/{compiled}")["run"])
        lines.append([json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()])
        tensors.append(load_file(run / "checkpoints/last/model.safetensors"))
    for plain, compiled_line in zip(*lines, strict=True):
        assert compiled_line["loss"] == pytest.approx(plain["loss"], abs=1e-4)
        assert compiled_line["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
    assert tensors[0].keys() == tensors[1].keys()  # no `_orig_mod` in a checkpoint


def tiny(**model: Any) -> Recipe:
    return Recipe(
        data=Data(store="", frames=4, size=16),
        model=Model(width=16, depth=12, heads=2, patch=4, **model),
        mask=RandomMask(kind="random", ratio=0.75),
        finetune=Finetune(drop_path=0.2),
    )


@pytest.mark.slow
def test_gradients_of_compiled_blocks_are_those_of_plain_ones(fresh: None) -> None:
    systems = []
    for _ in range(2):
        torch.manual_seed(0)
        systems.append(build_system(tiny()).train())
    plain, compiled = systems
    names = list(plain.autoencoder.state_dict())
    compile_blocks(compiled.autoencoder)
    assert list(compiled.autoencoder.state_dict()) == names
    found = []
    for system in systems:
        torch.manual_seed(1)
        video = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
        errors = system.errors(system.clip(video), Draws(0))
        errors.loss.backward()
        found.append(errors.loss.detach())
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
    for (name, one), other in zip(
        plain.autoencoder.named_parameters(), compiled.autoencoder.parameters(), strict=True
    ):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=0, msg=name)


@pytest.fixture
def graphs(fresh: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compile with a backend that only counts what it is given; return that list."""
    counted: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        counted.append(len(graph.graph.nodes))
        return graph.forward

    def compile_counting(self: nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_counting)
    return counted


def look(system: System) -> None:
    video = torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8)
    system.errors(system.clip(video), Draws(0)).loss.backward()


def test_every_stack_of_blocks_is_compiled_and_nothing_else(graphs: list[int]) -> None:
    system = build_system(tiny()).train()
    compile_blocks(system.autoencoder)
    compiled = {
        name
        for name, module in system.autoencoder.named_modules()
        if module._compiled_call_impl is not None
    }
    assert compiled == {f"encoder.blocks.{i}" for i in range(12)} | {
        f"head.branches.0.decoder.blocks.{i}" for i in range(4)
    }


def test_all_blocks_share_what_was_compiled(graphs: list[int]) -> None:
    """Once for the tokens of the encoder, and once for those of the decoder."""
    system = build_system(tiny()).train()
    compile_blocks(system.autoencoder)
    look(system)
    assert 1 <= len(graphs) <= 2
    before = len(graphs)
    look(system)
    assert len(graphs) == before


def test_blocks_share_it_whatever_their_drop_path_is(graphs: list[int]) -> None:
    """Each has another probability; torch compiles a function eight times and then gives up."""
    model = build_classifier(tiny(), classes=3).train()
    compile_blocks(model)
    model(torch.zeros(2, 3, 4, 16, 16)).sum().backward()
    assert len(graphs) <= 3, "the blocks are compiled one by one"
