"""Probes on made-up features: a planted signal, noise, the choosing, and what is held out."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from tatscli.console import Reporter
from tatscli.engine.distributed import World
from tatscli.engine.session import Session
from tatscli.errors import DataError, RecipeError
from tatscli.evaluation.features import Features, refuse_too_large
from tatscli.evaluation.probe import ChosenProbe, Trial, choose_probe, judge, train_probes
from tatscli.evaluation.shots import draw_shots, hold_out
from tatscli.nn.probe import AttentiveProbe, build_probe
from tatscli.recipe.schema import Probe

WIDTH, TOKENS, CLASSES = 16, 6, 3


def here() -> Session:
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    return Session(World(), torch.device("cpu"), torch.float32, reporter, {})


def planted(
    *, signal: float, videos: int = 60, views: int = 1, carriers: int = 1, seed: int = 0
) -> Features:
    """Some tokens of each clip, any of them, carry the direction of the class."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(videos, views, TOKENS, WIDTH, generator=generator)
    direction = torch.eye(WIDTH)[:CLASSES]
    label = torch.arange(videos) % CLASSES
    for video in range(videos):
        for view in range(views):
            tokens = torch.randperm(TOKENS, generator=generator)[:carriers]
            value[video, view, tokens] += signal * direction[label[video]]
    return Features(torch.arange(videos), label, value.flatten(2))


def pooled(data: Features) -> Features:
    mean = data.value_RVX.unflatten(2, (TOKENS, WIDTH)).mean(2)
    return Features(data.row_R, data.label_R, mean)


def settings(**changes: Any) -> Probe:
    plain = {"rates": [1e-3, 1e-2], "decays": [0.01], "epochs": 25, "batch": 16, "queries": 4}
    return Probe.model_validate({**plain, **changes})


def chosen(protocol: str, data: Features, probe: Probe) -> ChosenProbe:
    start = build_probe(protocol, probe, width=WIDTH, heads=4, classes=CLASSES, seed=3)
    return choose_probe(start, data, probe, seed=0, here=here())


def accuracy(one: ChosenProbe, data: Features) -> float:
    everyone = torch.arange(len(data.label_R))
    top1 = judge(one.probe, data, everyone, Trial(1, 1), torch.device("cpu")).top1
    assert top1 is not None
    return top1


FORMS = {
    "linear": {"rates": [1e-2, 1e-1]},
    "attentive": {},
    "vjepa": {"form": "vjepa", "rates": [3e-3], "epochs": 20},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_signal_is_found_and_noise_is_not(form: str) -> None:
    protocol = "linear" if form == "linear" else "attentive"
    shape = pooled if form == "linear" else (lambda data: data)
    probe = settings(**FORMS[form])
    found = chosen(protocol, shape(planted(signal=9, carriers=TOKENS, videos=120)), probe)
    assert accuracy(found, shape(planted(signal=9, carriers=TOKENS, videos=90, seed=1))) == 1.0
    blind = chosen(protocol, shape(planted(signal=0)), probe)
    assert accuracy(blind, shape(planted(signal=0, videos=300, seed=1))) < 0.45


def test_attention_finds_what_the_mean_drowns() -> None:
    """A small signal in one token of many, among tokens that all but it are large noise."""
    train, test = planted(signal=6, videos=240), planted(signal=6, videos=300, seed=1)
    probe = settings(rates=[1e-2])
    attentive = accuracy(chosen("attentive", train, probe), test)
    mean = accuracy(chosen("linear", pooled(train), probe), pooled(test))
    assert attentive > 0.93 and attentive > mean + 0.02


def test_choices_do_not_depend_on_each_other() -> None:
    data = planted(signal=5)
    start = build_probe("attentive", settings(), width=WIDTH, heads=4, classes=CLASSES, seed=3)
    choices = [Trial(1e-3, 0.01), Trial(1e-2, 0.4), Trial(1e6, 0.0)]
    kept, _ = hold_out(data.label_R, 0.2, seed=0)
    together = train_probes(start, data, kept, choices, settings(), seed=0, here=here())
    for choice, probe in zip(choices[:2], together, strict=False):
        (alone,) = train_probes(start, data, kept, [choice], settings(), seed=0, here=here())
        for one, other in zip(probe.parameters(), alone.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_best_on_the_held_out_videos_is_trained_again_on_all() -> None:
    data = planted(signal=5)
    probe = settings(rates=[1e-9, 1e-2], decays=[0.0, 0.1])
    found = chosen("attentive", data, probe)
    assert [(one.rate, one.decay) for one in found.choices] == [
        (1e-9, 0.0), (1e-9, 0.1), (1e-2, 0.0), (1e-2, 0.1)
    ]  # fmt: skip
    assert found.choice.rate == 1e-2
    assert found.held_out == 12
    top1 = [one.top1 for one in found.choices]
    assert found.choice.top1 == max(top1) > top1[0]
    start = build_probe("attentive", probe, width=WIDTH, heads=4, classes=CLASSES, seed=3)
    everyone = torch.arange(60)
    (again,) = train_probes(start, data, everyone, [found.choice], probe, seed=0, here=here())
    for one, other in zip(found.probe.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_single_choice_holds_nothing_out() -> None:
    data = planted(signal=30, videos=3)
    found = chosen("linear", pooled(data), settings(rates=[1e-3], epochs=2))
    assert (found.held_out, found.choice.top1) == (0, None)
    with pytest.raises(DataError, match="each class has one labelled video") as error:
        chosen("linear", pooled(data), settings())
    assert "evaluate.probe.rates=[1e-3]" in str(error.value.hint)


def test_a_step_of_one_video_is_refused_where_there_is_a_batch_norm() -> None:
    data, few = planted(signal=30, videos=6), planted(signal=30, videos=1)
    one = {"rates": [1e-3], "epochs": 1}
    for protocol, given, batch in (("linear", pooled(data), 1), ("attentive", few, 16)):
        with pytest.raises(DataError, match="needs two videos in a batch"):
            chosen(protocol, given, settings(batch=batch, **one))
    chosen("attentive", data, settings(batch=1, form="vjepa", **one))


def test_a_rate_that_bursts_is_not_chosen() -> None:
    found = chosen("attentive", planted(signal=30), settings(rates=[1e30, 1e-3]))
    assert found.choice.rate == 1e-3
    assert found.choices[0].loss is None


def test_views_of_a_video_are_averaged_and_each_pass_takes_one() -> None:
    data = planted(signal=30, views=3)
    found = chosen("attentive", data, settings())
    shares = found.probe(data.value_RVX.flatten(0, 1)).softmax(1).unflatten(0, (60, 3)).mean(1)
    right = (shares.argmax(1) == data.label_R).double().mean()
    assert accuracy(found, data) == pytest.approx(float(right))


def test_the_linear_probe_is_maes() -> None:
    torch.manual_seed(0)
    probe = build_probe("linear", Probe(), width=64, heads=4, classes=10, seed=0)
    weight = probe.head.weight  # type: ignore[union-attr]
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    given = 5 + 3 * torch.randn(50, 64)
    normed = (given - given.mean(0)) / (given.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(probe(given), normed @ weight.T, rtol=1e-4, atol=1e-5)


def test_held_out_videos_are_a_share_of_each_class() -> None:
    label = torch.tensor([0] * 10 + [1] * 5 + [2] * 2 + [3])
    kept, held = hold_out(label, 0.2, seed=0)
    assert label[held].bincount(minlength=4).tolist() == [2, 1, 1, 0]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(18))
    assert not torch.equal(hold_out(label, 0.2, seed=1)[1], held)
    # Five files of four segments each: whole files.
    _, held = hold_out(torch.zeros(20).long(), 0.4, seed=0, source_R=torch.arange(20) // 4)
    assert (held // 4).bincount(minlength=5).tolist().count(4) == len(held) // 4 == 2


def test_shots_are_exact_nested_and_drawn_by_the_seed() -> None:
    rows, labels, names = list(range(100, 130)), [number % 3 for number in range(30)], list("abc")

    def drawn(shots: int, seed: int = 0) -> list[int]:
        return draw_shots(rows, labels, shots, seed=seed, names=names)

    for shots in (1, 4, 10):
        found = drawn(shots)
        assert found == sorted(found)
        assert [sum(labels[row - 100] == one for row in found) for one in range(3)] == [shots] * 3
    assert set(drawn(2)) < set(drawn(5))
    assert drawn(2, seed=1) != drawn(2)
    with pytest.raises(DataError, match=r"`evaluate\.shots: 11` .* 3 of 3 classes; `a` has 10"):
        drawn(11)


def test_features_that_are_too_large_are_refused_before_anything_is_read() -> None:
    refuse_too_large((1000, 2, 1000), torch.float16, 0.004)
    with pytest.raises(RecipeError, match=r"0\.004 GB .*`evaluate\.probe\.cache_gb: 0\.003`"):
        refuse_too_large((1000, 2, 1000), torch.float16, 0.003)


def test_queries_must_share_the_width() -> None:
    with pytest.raises(RecipeError, match=r"`evaluate\.probe\.queries: 7` does not divide"):
        AttentiveProbe(Probe(queries=7), width=128, heads=4, classes=2)
