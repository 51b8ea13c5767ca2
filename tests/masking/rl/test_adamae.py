"""AdaMAE's sampler against its formula in plain Python."""

import math

import pytest
import torch

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking import build_masker
from tatscli.recipe import schema
from tatscli.recipe.derive import derive_schedule
from tests.masking.kinds import clip_of, schedule_of
from tests.masking.rl.toy import GRID, TOKENS, WIDTH, learner_of, make, share, train


def norm(x, weight, bias):
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
    return [(v - mean) / spread * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def linear(x, weight, bias=None):
    out = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]
    return out if bias is None else [o + b for o, b in zip(out, bias, strict=True)]


def softmax(scores):
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def probabilities(tokens, w, heads):
    """One clip through position table, attention block, linear layer and softmax, with lists."""
    tokens = [add(token, place) for token, place in zip(tokens, w["position"], strict=True)]
    width = len(tokens[0])
    size = width // heads
    normed = [norm(t, w["trunk.norm1.weight"], w["trunk.norm1.bias"]) for t in tokens]
    qkv = [linear(t, w["trunk.qkv.weight"]) for t in normed]
    mixed = []
    for i in range(len(tokens)):
        row = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q = qkv[i][:width][part]
            keys = [one[width : 2 * width][part] for one in qkv]
            values = [one[2 * width :][part] for one in qkv]
            dots = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size) for k in keys]
            weights = softmax(dots)
            row += [
                sum(a * v[d] for a, v in zip(weights, values, strict=True)) for d in range(size)
            ]
        mixed.append(linear(row, w["trunk.proj.weight"], w["trunk.proj.bias"]))
    tokens = [add(t, m) for t, m in zip(tokens, mixed, strict=True)]
    scores = []
    for token in tokens:
        inner = norm(token, w["trunk.norm2.weight"], w["trunk.norm2.bias"])
        inner = [gelu(v) for v in linear(inner, w["trunk.fc1.weight"], w["trunk.fc1.bias"])]
        token = add(token, linear(inner, w["trunk.fc2.weight"], w["trunk.fc2.bias"]))
        scores += linear(token, w["actor.weight"])
    return softmax(scores)


def test_the_loss_is_the_published_formula():
    config = schema.AdamaeMask(kind="adamae", ratio=0.7, width=8, heads=2, dropout=0)
    torch.manual_seed(1)
    masker = build_masker(config, grid=(2, 1, 5), width=8).train()
    for parameter in masker.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokens = torch.randn(3, 10, 8)
    clip = clip_of((2, 1, 5), tokens=tokens)
    plan = masker.plan(clip, Draws(0))
    error = torch.rand(plan.predict_BM.shape)
    weights = {name: value.tolist() for name, value in masker.policy.named_parameters()}
    total = 0.0
    scores = masker.scores_BN(clip)
    for number in range(3):
        p = probabilities(tokens[number].tolist(), weights, heads=2)
        hidden = plan.predict_BM[number].tolist()
        errors = error[number].tolist()
        terms = [-math.log(p[i]) * e for i, e in zip(hidden, errors, strict=True)]
        total += sum(terms) / len(terms) / 3
        torch.testing.assert_close(scores[number], torch.tensor(p), atol=1e-6, rtol=0)
    lesson = masker.learn(plan, error)
    assert lesson.metrics["sampling_loss"].item() == pytest.approx(total, abs=1e-6)
    assert lesson.loss.item() == pytest.approx(1e-4 * total, rel=1e-4)  # its published weight
    assert lesson.metrics["reward"].item() == pytest.approx(error.mean().item())
    assert set(lesson.metrics) == {"sampling_loss", "entropy", "reward"}


def test_hard_tokens_gain_a_little_visibility():
    """The objective limits itself: about .23 of what is shown, far from collapse (masks.md)."""
    masker = make("adamae")
    assert share(masker) == pytest.approx(0.1, abs=0.02)
    metrics = train(masker, 200)
    assert 0.13 < share(masker) < 0.4
    assert metrics["entropy"] > 0.9


def test_dropout_follows_the_attention_and_the_mlp_and_nothing_else():
    """With all of both dropped, the block hands its tokens on; 0.1 is published."""
    assert schema.AdamaeMask(kind="adamae").dropout == 0.1
    tokens = torch.randn(2, TOKENS, WIDTH)
    for dropout, alike in ((0.0, True), (0.5, False)):
        masker = make("adamae", dropout=dropout)
        torch.nn.init.normal_(masker.policy.actor.weight)
        first, second = (masker.policy(tokens).log_p_BN for _ in range(2))
        assert torch.equal(first, second) == alike
    block, seen = masker.policy.trunk, []
    block.dropout.p = 1.0
    block.dropout.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[-1]))
    inner = torch.randn(2, TOKENS, block.width)
    assert torch.equal(block(inner), inner)
    assert seen == [block.width] * 2


def test_the_rate_is_the_autoencoders_at_every_step_unless_given():
    """Linear from 0 to the peak over 40 epochs, then a cosine to the floor, as VideoMAE's."""
    optim = schema.Optim(epochs=100, total_batch=512, batch_per_device=512, warmup_epochs=40)
    schedule = derive_schedule(optim, videos=1024, repeats=1, world=1)
    peak, floor = 3e-4, 2e-5
    learner = make("adamae", steps=None, base_lr=None).learners(schedule)["sampler"]
    for step in range(200):
        rise = peak * step / 79
        fall = floor + (peak - floor) * (1 + math.cos(math.pi * (step - 80) / 120)) / 2
        assert learner.begin(step) == pytest.approx(rise if step < 80 else fall)
    assert make("adamae", base_lr=1e-3)._lr_at(0, schedule_of(10)) == pytest.approx(1e-3)


def test_every_matrix_of_the_sampler_decays():
    """VideoMAE's rule leaves out biases and vectors; position table and actor are neither."""
    policy = make("adamae").policy
    decayed, free = policy.decay_groups(0.05, every=True)
    names = {id(value): name for name, value in policy.named_parameters()}
    assert {names[id(value)].split(".")[-1] for value in free["params"]} == {"bias", "weight"}
    assert all(value.ndim == 1 for value in free["params"])
    assert {"position", "actor.weight"} <= {names[id(value)] for value in decayed["params"]}
    (group, _) = learner_of(make("adamae")).optimizer.param_groups
    assert group["weight_decay"] == 0.05 and len(group["params"]) == len(decayed["params"])


def test_the_block_starts_with_xavier_weights():
    masker = make("adamae", width=64, heads=4)
    weight = masker.policy.trunk.fc1.weight
    bound = math.sqrt(6 / (64 + 256))
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(
        bound / math.sqrt(3), rel=0.03
    )


def test_the_width_is_the_encoders_unless_given():
    config = schema.AdamaeMask(kind="adamae", heads=2)
    assert build_masker(config, grid=GRID, width=WIDTH).policy.width == WIDTH
    with pytest.raises(RecipeError, match=r"mask\.heads: 8.*does not divide.*6"):
        build_masker(schema.AdamaeMask(kind="adamae"), grid=GRID, width=WIDTH)
