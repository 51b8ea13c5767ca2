"""The MAE decoder: subsets, branches, defaults, cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import RecipeError
from tatscli.heads import build_head
from tatscli.heads.base import Head, HeadOutput
from tatscli.heads.decoder import DecoderHead
from tatscli.masking.plan import MaskPlan
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tests.nn.counting import block_macs, counted_macs

GRID = (2, 3, 4)


def make(predicts: list[int], **changes: Any) -> DecoderHead:
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=1, heads=4, grid=GRID, tubelet=2, patch=4)
    head = build_head(schema.DecoderHead(depth=2, **changes), encoder=encoder, predicts=predicts)
    assert isinstance(head, DecoderHead)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


def latents_and_plan() -> tuple[Tensor, MaskPlan]:
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    plan = MaskPlan(order[:, :6].sort(1).values, order[:, 6:].sort(1).values)
    return torch.randn(2, 6, 32), plan


def asked(plan: MaskPlan, places: Tensor | slice) -> MaskPlan:
    """The same plan, with some of the predicted tokens, or in another order."""
    return MaskPlan(plan.visible_BK, plan.predict_BM[:, places])


def run(head: Head, latents: Tensor, plan: MaskPlan) -> list[Tensor]:
    """Ask a head that has no errors of its own, of a clip that it must not look at."""
    form = ClipForm(GRID, 2, 4)
    nothing = Clip(form, torch.zeros(0, 24, 96, dtype=torch.uint8))

    def encode(index_BM: Tensor) -> Tensor:
        raise AssertionError("the decoder does not ask for latents of hidden tokens")

    output = head(nothing, latents, plan, encode)
    assert isinstance(output, HeadOutput)
    assert not output.auxiliary
    return output.predictions


def test_names_below_a_branch_are_videomaes() -> None:
    names = {name for name in make([10]).branches[0].state_dict() if ".blocks." not in name}
    assert names == {
        "encoder_to_decoder.weight",
        "mask_token",
        "decoder.norm.weight",
        "decoder.norm.bias",
        "decoder.head.weight",
        "decoder.head.bias",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, (16, 2)), ({"width": 24, "heads": 3}, (24, 3)), ({"width": 8}, (8, 2))],
)
def test_null_settings_are_half_the_encoders(
    changes: dict[str, int], expected: tuple[int, int]
) -> None:
    head = make([10], **changes)
    (branch,) = head.branches
    width, heads = expected
    assert branch.mask_token.shape == (1, 1, width)
    assert [block.attn.heads for block in branch.decoder.blocks] == [heads, heads]
    assert run(head, *latents_and_plan())[0].shape == (2, 18, 10)


def test_every_target_has_its_own_branch() -> None:
    head = make([10, 3])
    assert head.predicts == [10, 3]
    first, second = run(head, *latents_and_plan())
    assert first.shape == (2, 18, 10)
    assert second.shape == (2, 18, 3)
    first.sum().backward()
    assert all(p.grad is not None for p in head.branches[0].parameters())
    assert all(p.grad is None for p in head.branches[1].parameters())


def test_predicting_fewer_tokens_leaves_the_others_out_of_the_decoder() -> None:
    head = make([10])
    latents, plan = latents_and_plan()
    (few,) = run(head, latents, asked(plan, slice(4)))
    assert few.shape == (2, 4, 10)
    (everything,) = run(head, latents, plan)
    # Absent mask tokens are no keys either: the result is not a slice of the full one.
    assert (few - everything[:, :4]).abs().max() > 1e-3
    one = MaskPlan(plan.visible_BK[:1], plan.predict_BM[:1, :4])
    counted = counted_macs(lambda: run(head, latents[:1], one))
    assert counted == 6 * 32 * 16 + 2 * block_macs(6 + 4, 16) + 4 * 16 * 10


def test_predictions_belong_to_their_tokens_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make([10])
    latents, plan = latents_and_plan()
    order = torch.randperm(18)
    # A plan must rise, which nobody looks at on a GPU.
    monkeypatch.setattr("tatscli.masking.plan.readable", lambda _: False)
    (straight,) = run(head, latents, plan)
    (shuffled,) = run(head, latents, asked(plan, order))
    torch.testing.assert_close(shuffled, straight[:, order])


def test_costs_add_up_over_branches() -> None:
    head = make([10, 3])
    latents, plan = latents_and_plan()
    one = MaskPlan(plan.visible_BK[:1], plan.predict_BM[:1])
    shared = 6 * 32 * 16 + 2 * block_macs(24, 16)
    counted = counted_macs(lambda: run(head, latents[:1], one))
    assert counted == 2 * shared + 18 * 16 * (10 + 3)


def test_one_head_at_least() -> None:
    encoder = Encoder(width=8, depth=1, heads=1, grid=(1, 2, 2), tubelet=1, patch=2)
    head = build_head(schema.DecoderHead(), encoder=encoder, predicts=[2])
    assert [block.attn.heads for block in head.branches[0].decoder.blocks] == [1] * 4


@pytest.mark.parametrize("section", [schema.DecoderHead, schema.RegressorHead])
def test_a_width_that_the_heads_do_not_divide_is_refused(section: Any) -> None:
    encoder = Encoder(width=32, depth=1, heads=4, grid=GRID, tubelet=2, patch=4)
    kind = {schema.DecoderHead: "decoder", schema.RegressorHead: "regressor"}[section]
    with pytest.raises(RecipeError, match=r"`head.width: 10` is not a multiple of `head.heads: 4`"):
        build_head(section(kind=kind, width=10, heads=4), encoder=encoder, predicts=[2])


KINDS: dict[str, dict[str, Any]] = {
    "decoder": {"depth": 2},
    "regressor": {"depth": 1, "regressor_depth": 1},
}


def built(kind: str, predicts: list[int], *, shared: bool) -> Head:
    """A head of either kind with weights of one seed, and positions of its own in every one."""
    section = {"decoder": schema.DecoderHead, "regressor": schema.RegressorHead}[kind]
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=1, heads=4, grid=GRID, tubelet=2, patch=4)
    config = section.model_validate({"kind": kind, "shared": shared} | KINDS[kind])
    return build_head(config, encoder=encoder, predicts=predicts)


def decoded_in(head: Head, kind: str) -> torch.nn.ModuleList:
    stack = head.branches if kind == "decoder" else head.decoders
    assert isinstance(stack, torch.nn.ModuleList)
    return stack


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_shared_decoder_of_one_target_is_that_of_the_target(kind: str) -> None:
    """In names, start values and numbers: a checkpoint of either loads into the other."""
    own, shared = built(kind, [10], shared=False), built(kind, [10], shared=True)
    assert own.state_dict().keys() == shared.state_dict().keys()
    latents, plan = latents_and_plan()
    (one,), (other,) = run(own, latents, plan), run(shared, latents, plan)
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_that_share_a_decoder_have_an_output_each(kind: str) -> None:
    head = built(kind, [10, 3, 7], shared=True)
    assert len(decoded_in(head, kind)) == 1
    assert len(decoded_in(built(kind, [10, 3, 7], shared=False), kind)) == 3
    latents, plan = latents_and_plan()
    predictions = run(head, latents, plan)
    assert [one.shape for one in predictions] == [(2, 18, 10), (2, 18, 3), (2, 18, 7)]
    predictions[1].square().sum().backward()
    reached = {name for name, one in head.named_parameters() if one.grad is not None}
    silent = {name for name, _ in head.named_parameters()} - reached
    assert {name.rsplit(".", 2)[-2] for name in silent} == {"head", "1"}  # of the other two
    assert [name for name in reached if ".blocks." in name]
    # With the trunk held, each output is what a decoder of its own would make of it.
    alone = built(kind, [3], shared=False)
    weights = {name: one for name, one in head.state_dict().items() if ".further." not in name}
    for name in [name for name in weights if name.rsplit(".", 2)[-2] == "head"]:
        further = name.replace(".head.", ".further.0.")
        weights[name] = head.state_dict()[further]
    alone.load_state_dict(weights)
    assert torch.equal(run(alone, latents, plan)[0], predictions[1])


def test_a_shared_decoder_is_paid_for_once() -> None:
    latents, plan = latents_and_plan()
    one = MaskPlan(plan.visible_BK[:1], plan.predict_BM[:1])
    head = built("decoder", [10, 3], shared=True)
    trunk = 6 * 32 * 16 + 2 * block_macs(24, 16)
    assert counted_macs(lambda: run(head, latents[:1], one)) == trunk + 18 * 16 * (10 + 3)
