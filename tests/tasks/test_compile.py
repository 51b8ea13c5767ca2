"""`run.compile`: the same numbers and names, and blocks that share what was compiled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.data.clip import cut
from tatscli.draws import Draws
from tatscli.engine.parallel import train_blocks
from tatscli.nn.averaged import Averaged
from tatscli.nn.classifier import build_classifier
from tatscli.nn.convolution import PictureEncoder
from tatscli.nn.vit import Block
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
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


def tiny(head: str = "decoder", **model: Any) -> Recipe:
    """Four blocks of width 16, and two targets."""
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 4, "size": 16},
            "model": {"width": 16, "depth": 4, "heads": 2, "patch": 4} | model,
            "mask": {"kind": "random", "ratio": 0.75},
            "head": yaml.safe_load(HEADS[head].removeprefix("head=")),
            "targets": [{"kind": "pixels"}, {"kind": "difference"}],
            "finetune": {"drop_path": 0.2},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("head", "checkpointing"), [("decoder", False), ("regressor", True)])
def test_gradients_of_compiled_blocks_are_those_of_plain_ones(
    fresh: None, head: str, checkpointing: bool
) -> None:
    systems = []
    for _ in range(2):
        torch.manual_seed(0)
        systems.append(build_system(tiny(head)).train())
    plain, compiled = systems
    names = list(plain.autoencoder.state_dict())
    train_blocks(compiled.autoencoder, compiled=True, checkpointing=checkpointing)
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
    """Compile with a backend that only counts what it is given; return that list. Everything is
    compiled with `fullgraph`, which refuses a graph that breaks."""
    counted: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        counted.append(len(graph.graph.nodes))
        return graph.forward

    compile_plainly = torch.compile

    def compile_counting(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options == {"fullgraph": True, "dynamic": False}
        return compile_plainly(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_counting)
    return counted


def look(system: System, autocast: bool = False) -> Tensor:
    torch.manual_seed(1)
    video = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = system.errors(system.clip(video), Draws(0)).loss
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def test_every_stack_of_blocks_is_compiled_and_nothing_else(graphs: list[int]) -> None:
    system = build_system(tiny("regressor")).train()
    train_blocks(system.autoencoder, compiled=True)
    compiled = {n for n, one in system.autoencoder.named_modules() if "forward" in vars(one)}
    assert compiled == {f"encoder.blocks.{i}" for i in range(4)} | {
        "head.regressor.blocks.0",
        "head.decoders.0.blocks.0",
        "head.decoders.1.blocks.0",
    }


@pytest.mark.parametrize(("autocast", "checkpointing"), [(False, False), (True, True)])
@pytest.mark.parametrize("head", HEADS)
def test_no_graph_breaks_and_blocks_share_what_was_compiled(
    graphs: list[int], head: str, autocast: bool, checkpointing: bool
) -> None:
    """Once for each number of tokens, and once more where there is no gradient."""
    plain, compiled = (build_system(tiny(head)).train() for _ in range(2))
    compiled.autoencoder.load_state_dict(plain.autoencoder.state_dict())
    train_blocks(compiled.autoencoder, compiled=True, checkpointing=checkpointing)
    expected = look(plain, autocast)
    torch.testing.assert_close(look(compiled, autocast), expected, atol=1e-4, rtol=0)
    before = len(graphs)
    # Encoder and decoder; or encoder, its look at hidden tokens, regressor and decoder.
    assert 1 <= before <= (2 if head == "decoder" else 4)
    look(compiled, autocast)
    assert len(graphs) == before


def test_what_is_evaluated_is_not_compiled(graphs: list[int]) -> None:
    system = build_system(tiny()).eval()
    train_blocks(system.autoencoder, compiled=True)
    for frames in (4, 2):
        video = torch.zeros(1, 3, frames, 16, 16)
        index = torch.arange(frames // 2 * 16)[None]
        system.encoder(system.encoder.embed(cut(video, (frames // 2, 4, 4), 2, 4)), index)
    assert not graphs


def test_an_average_is_compiled_while_what_it_follows_trains(graphs: list[int]) -> None:
    encoder = build_system(tiny()).encoder
    slow = Averaged(encoder).network
    train_blocks(slow, compiled=True, as_in=encoder)
    tokens = torch.randn(2, 32, 16)
    for training in (False, True):
        encoder.train(training)
        slow(tokens)
        assert bool(graphs) == training
    assert not slow.training


def test_blocks_share_it_whatever_their_drop_path_is(graphs: list[int]) -> None:
    """Each has another probability."""
    model = build_classifier(tiny(depth=9), classes=3).train()
    train_blocks(model, compiled=True)
    model(torch.zeros(2, 3, 4, 16, 16)).sum().backward()
    assert len(graphs) <= 3, "the blocks are compiled one by one"


def test_more_forms_than_torch_compiles_by_itself(graphs: list[int]) -> None:
    """Bare layers between the blocks of a CNN stay as they are."""
    model = PictureEncoder([2, 3, 4, 5, 6, 7, 8, 9, 10], 1, patch=1, out=2).train()
    train_blocks(model, compiled=True)
    assert sum("forward" in vars(one) for one in model.blocks) == 9
    model(torch.zeros(1, 3, 256, 256)).sum().backward()
    assert len(graphs) == 9


@pytest.mark.slow
def test_what_is_dropped_stays_dropped_when_it_is_computed_again(fresh: None) -> None:
    torch.manual_seed(0)
    block = Block(16, 2, drop_path=0.5).train()
    for parameter in block.mlp.parameters():
        nn.init.zeros_(parameter)
    stack = nn.Module()
    stack.blocks = nn.ModuleList([block])
    train_blocks(stack, compiled=True, checkpointing=True)
    tokens, weight_B = torch.randn(64, 4, 16), torch.rand(64)
    changed = block(tokens)
    kept_B = (changed - tokens).abs().amax(dim=(1, 2)) > 1e-6
    assert 16 < kept_B.sum() < 48
    loss = (changed.sum(dim=(1, 2)) * weight_B).sum()
    (found,) = torch.autograd.grad(loss, block.attn.proj.bias)
    # Twice for each token of a clip that is kept.
    torch.testing.assert_close(found, (2 * 4 * kept_B * weight_B).sum().expand(16))
