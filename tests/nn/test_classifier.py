"""The classifier: pooling, layers for layer decay, start values, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tatscli.data.clip import pick
from tatscli.engine.optim import build_optimizer, decays
from tatscli.errors import RecipeError
from tatscli.nn.classifier import Classifier, chosen_groups
from tatscli.nn.pool import EfficientPool, JepaPool
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import ClassHead, Optim
from tatscli.store.schema import ClassGroup


def make(**changes: Any) -> Classifier:
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=3, heads=4, grid=(2, 2, 2), tubelet=2, patch=4)
    return Classifier(encoder, 5, **changes)


def test_scores_are_the_pooled_features_through_norm_and_head() -> None:
    model = make(head_scale=1.0).eval()
    video = torch.randn(2, 3, 4, 8, 8)
    features = model.encoder.features(model.encoder.embed(model.encoder.cubes(video)))
    expected = model.head(model.fc_norm(features.mean(1)))
    torch.testing.assert_close(model(video), expected)


def test_layers_count_from_the_patch_embedding_to_the_head() -> None:
    model = make()
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert model.layers == 4
    assert layers["encoder.patch_embed.proj.weight"] == 0
    assert layers["encoder.blocks.0.attn.q_bias"] == 1
    assert layers["encoder.blocks.2.mlp.fc2.weight"] == 3
    assert layers["fc_norm.weight"] == layers["head.bias"] == 4
    assert set(layers.values()) == {0, 1, 2, 3, 4}


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = make()
    model(torch.randn(2, 3, 4, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not model.encoder.norm.weight.requires_grad


def test_the_head_starts_small_by_its_factor() -> None:
    small, plain = make(head_scale=0.001).head.weight, make(head_scale=1.0).head.weight
    torch.testing.assert_close(small, plain * 0.001)
    assert plain.std() > 0.01


def test_dropout_acts_in_training_only() -> None:
    model = make(dropout=0.5, head_scale=1.0)
    video = torch.randn(2, 3, 4, 8, 8)
    assert not torch.equal(model(video), model(video))
    model.eval()
    assert torch.equal(model(video), model(video))


FORMS = [
    {"pool": pool, "norm": norm}
    for pool in ("mean", "attention", "cls")
    for norm in ("layer", "batch")
]


def test_the_default_form_is_videomaes_to_the_bit() -> None:
    """Names and start values: what `finetune.head` adds must not shift a single draw."""
    model = make(form=ClassHead())
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=3, heads=4, grid=(2, 2, 2), tubelet=2, patch=4)
    head = nn.Linear(32, 5)
    nn.init.trunc_normal_(head.weight, std=0.02, a=-0.02, b=0.02)
    expected = {f"encoder.{name}": value for name, value in encoder.state_dict().items()} | {
        "fc_norm.weight": torch.ones(32),
        "fc_norm.bias": torch.zeros(32),
        "head.weight": head.weight.data * 0.001,
        "head.bias": torch.zeros(5),
    }
    found = model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_every_form_trains_all_it_has_and_scores_alike_twice(form: dict[str, str]) -> None:
    model = make(form=ClassHead(**form, queries=4), head_scale=1.0)
    video = torch.randn(4, 3, 4, 8, 8)
    model(video).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert 0 <= model.layer_of(name) <= model.layers
        if parameter.requires_grad and not name.endswith("bias"):
            assert parameter.grad.abs().sum() > 0, name
    model.eval()
    scores = model(video)
    assert scores.shape == (4, 5)
    # In evaluation no clip hears of the others.
    torch.testing.assert_close(model(video[:1]), scores[:1], rtol=1e-4, atol=1e-5)


def test_what_is_new_learns_at_the_rate_of_the_head_and_learned_tokens_are_not_decayed() -> None:
    for form, names in (
        ({"pool": "attention"}, {"pool.queries_MD": False, "pool.value.weight": True}),
        ({"pool": "cls"}, {"cls_D": False}),
    ):
        model = make(form=ClassHead(**form))
        parameters = dict(model.named_parameters())
        for name, decayed in names.items():
            assert model.layer_of(name) == model.layers
            assert decays(name, parameters[name]) == decayed


def test_the_class_token_goes_through_the_blocks_behind_the_clips() -> None:
    model = make(form=ClassHead(pool="cls"), head_scale=1.0).eval()
    encoder, video = model.encoder, torch.randn(2, 3, 4, 8, 8)
    tokens = encoder.embed(encoder.cubes(video)) + encoder.positions()
    tokens = torch.cat([tokens, model.cls_D.expand(2, 1, 32)], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(model(video), model.head(model.fc_norm(tokens[:, -1])))


def test_queries_pool_their_share_of_the_values_by_what_they_attend_to() -> None:
    torch.manual_seed(0)
    pool = EfficientPool(6, 3, key="q")
    tokens = torch.randn(2, 5, 6)
    found = pool(tokens)
    for clip in range(2):
        normed = pool.norm(tokens[clip])
        values = normed @ pool.value.weight.T
        for query in range(3):
            weight = torch.stack([pool.queries_MD[query] @ one for one in normed]) / 6**0.5
            share = weight.softmax(0) @ values[:, 2 * query : 2 * query + 2]
            torch.testing.assert_close(found[clip, 2 * query : 2 * query + 2], share)


def test_queries_that_cannot_share_the_width_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"`finetune\.head\.queries: 5` does not divide .* 32"):
        make(form=ClassHead(pool="attention", queries=5))


def test_the_pool_of_v_jepa_has_three_blocks_and_a_query() -> None:
    pool = JepaPool(32, 4)
    assert len(pool.blocks) == 3
    tokens = torch.randn(2, 7, 32)
    assert pool(tokens).shape == (2, 32)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(7)]))  # a set of tokens
    pool(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_tokens_that_are_left_out_are_neither_read_nor_missed(pool: str) -> None:
    model = make(form=ClassHead(pool=pool), head_scale=1.0).eval()
    encoder, video = model.encoder, torch.randn(2, 3, 4, 8, 8)
    every = torch.arange(encoder.tokens).expand(2, -1)
    torch.testing.assert_close(model(video, every), model(video))
    kept = torch.tensor([[0, 2, 5], [1, 3, 7]])
    scores = model(video, kept)
    cubes = encoder.cubes(video)
    hidden = torch.ones(cubes.shape[:2], dtype=torch.bool).scatter_(1, kept, False)
    blind = cubes.masked_fill(hidden[..., None], torch.nan)
    encoder.cubes = lambda _, index=None: pick(blind, index)  # type: ignore[method-assign]
    assert torch.equal(model(video, kept), scores)
    # By hand, one clip and token after the other, at the places where they were.
    tokens = torch.stack([encoder.embed(cubes[i, kept[i]]) for i in range(2)])
    tokens = tokens + encoder.positions()[kept]
    if pool == "cls":
        tokens = torch.cat([tokens, model.cls_D.expand(2, 1, 32)], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    feature = {"mean": lambda: tokens.mean(1), "cls": lambda: tokens[:, -1]}.get(
        pool, lambda: model.pool(tokens)
    )()
    torch.testing.assert_close(scores, model.head(model.fc_norm(feature)))


GROUPS = {
    "verb": ClassGroup(names=("take", "put"), of=(0, 0, 1)),
    "noun": ClassGroup(names=("cup", "pan", "egg"), of=(0, 1, 0)),
}


@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_a_class_scores_the_product_of_what_its_members_score(pool: str) -> None:
    """Against a plain loop over clips and classes; and softmax shares it out over the classes."""
    form = ClassHead(pool=pool, norm="batch")
    model = make(groups=GROUPS, form=form, head_scale=9.0).eval()
    video = torch.randn(2, 3, 4, 8, 8)
    scores = model(video)
    assert scores.shape == (2, 3)
    verbs, nouns = model(video, by_head=True)
    for clip in range(2):
        verb, noun = verbs[clip].softmax(0), nouns[clip].softmax(0)
        products = [
            verb[v] * noun[n] for v, n in zip(GROUPS["verb"].of, GROUPS["noun"].of, strict=True)
        ]
        torch.testing.assert_close(scores[clip].exp(), torch.stack(products))
        total = sum(products)
        for place, product in enumerate(products):
            torch.testing.assert_close(scores[clip].softmax(0)[place], product / total)
    names = [name for name, _ in model.named_parameters() if name.startswith("head")]
    assert sorted(names) == [f"heads.{g}.{p}" for g in ("noun", "verb") for p in ("bias", "weight")]
    assert {model.layer_of(name) for name in names} == {model.layers}
    assert model.outputs == {"verb": 2, "noun": 3}
    model.train()
    sum(one.square().sum() for one in model(torch.randn(4, 3, 4, 8, 8), by_head=True)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    # Which member a class is follows from the groups: a checkpoint's weights need not say it.
    assert not [name for name in model.state_dict() if name.endswith("_L")]


def test_one_head_by_itself_is_what_the_loss_gets() -> None:
    model = make(head_scale=1.0).eval()
    video = torch.randn(2, 3, 4, 8, 8)
    (alone,) = model(video, by_head=True)
    assert torch.equal(alone, model(video))


def test_groups_are_chosen_by_name_and_must_tell_classes_apart() -> None:
    assert list(chosen_groups(["noun", "verb"], GROUPS)) == ["noun", "verb"]
    assert chosen_groups(None, GROUPS) == {}
    with pytest.raises(
        RecipeError, match=r"heads: \[vreb\]`: .* no group `vreb`; they have `verb`"
    ):
        chosen_groups(["vreb"], GROUPS)
    with pytest.raises(RecipeError, match="no group `verb`: they are not combinations"):
        chosen_groups(["verb"], {})
    with pytest.raises(RecipeError, match="distinguishes only 2 of 3 classes") as error:
        chosen_groups(["verb"], GROUPS)
    assert error.value.hint == "also name `noun`"


@pytest.mark.parametrize(("what", "blocks"), [("none", 0), (1, 1), (3, 3), ("encoder", 3)])
def test_frozen_blocks_have_no_gradient_and_no_stochastic_depth(
    what: str | int, blocks: int
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=3, heads=4, grid=(2, 2, 2), tubelet=2, patch=4, drop_path=0.9)
    model = Classifier(encoder, 5, head_scale=1.0)
    kept = model.freeze(what)
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    expected = [
        name
        for name, _ in model.named_parameters()
        if model.layer_of(name) <= blocks and what != "none"
    ]
    assert sorted(frozen) == sorted([*expected, "encoder.norm.weight", "encoder.norm.bias"])
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    assert kept == sum(sizes[name] for name in expected)
    model.train()
    tokens = encoder.embed(encoder.cubes(torch.randn(16, 3, 4, 8, 8)))
    for number, block in enumerate(encoder.blocks):
        seen = block(tokens), block(tokens)
        # The first block of a stack drops nothing in any case.
        assert torch.equal(*seen) == (number < max(1, blocks)), number
    decay = build_optimizer(
        model, Optim(), layer_of=model.layer_of, layers=model.layers, layer_decay=0.5
    )
    owned = {id(one) for group in decay.param_groups for one in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in owned) == parameter.requires_grad, name
    scales = {group["lr_scale"] for group in decay.param_groups}
    first = 1 + blocks if what != "none" else 0
    assert scales == {0.5 ** (model.layers - layer) for layer in range(first, model.layers + 1)}


def test_more_blocks_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(RecipeError, match=r"`finetune\.freeze: 4`: the encoder has only 3 blocks"):
        make().freeze(4)
