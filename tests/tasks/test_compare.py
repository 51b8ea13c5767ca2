"""`tats compare` on results written here: what is found, aggregated, tested and refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.recipe.schema import Recipe
from tatscli.tasks.compare import compare, find_result
from tatscli.tasks.result_files import write_result
from tatscli.tasks.results import VideoScores, read_result, read_scores

RECIPE = {"data": {"store": "s"}, "mask": {"kind": "tube", "ratio": 0.75}}
CLASSES = ["a", "b", "c"]


class Desk:
    """Runs with results, each of whose videos is named rightly with some probability."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stderr = io.StringIO()
        self.reporter = Reporter(stdout=io.StringIO(), stderr=self.stderr)

    def result(
        self,
        run: str,
        right: np.ndarray,
        *,
        seed: int = 0,
        ids: list[str] | None = None,
        names: list[str] = CLASSES,
        source: np.ndarray | None = None,
        file: str = "finetuned-val-1x1",
        **facts: Any,
    ) -> Path:
        """Write a result in which the videos of `right` are named rightly."""
        videos = len(right)
        label = np.arange(videos) % 3
        score = np.full((videos, 3), 0.2, np.float32)
        score[np.arange(videos), np.where(right, label, (label + 1) % 3)] = 0.6
        scores = VideoScores(
            ids or [f"v/{number}.mp4" for number in range(videos)],
            names,
            label,
            score,
            np.arange(videos),
            np.arange(videos) if source is None else source,
        )
        recipe = Recipe.model_validate({**RECIPE, "run": {"seed": seed}}).model_dump(mode="json")
        result = {
            "protocol": "finetuned", "split": "val", "segments": 1, "crops": 1,
            "videos": videos, "views": videos, "untrained": False, "step": 10, "skipped": [],
            "top1": float(right.mean()), "top5": 1.0, "mean_class": float(right.mean()),
            "ece": 0.1, "nll": 0.5, "top1_interval": [0.1, 0.9], "init": None,
            "checkpoint_sha256": f"{run} {seed}", "store_fingerprint": "f", "recipe": recipe,
            "started": "2026-01-01T00:00:00+00:00", **facts,
        }  # fmt: skip
        path = self.folder / run / "results" / f"{file}.json"
        write_result(path, result, scores)
        return path.parent.parent

    def compare(self, *runs: Path, **options: Any) -> dict[str, Any]:
        return compare(runs, reporter=self.reporter, **options)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def flips(count: int, share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_scores_come_back_as_they_were_written(desk: Desk) -> None:
    right = flips(20, 0.5)
    path = desk.result("a", right) / "results" / "finetuned-val-1x1.json"
    scores = read_scores(path, read_result(path))
    assert np.array_equal(scores.right_R, right)
    assert (scores.videos[3], scores.class_names) == ("v/3.mp4", CLASSES)


def test_pairs_are_tested_as_scipy_does(desk: Desk) -> None:
    stats = pytest.importorskip("scipy.stats")
    one, two, three = (flips(120, share, seed) for seed, share in enumerate((0.6, 0.75, 0.5)))
    runs = [desk.result(name, right) for name, right in zip("abc", (one, two, three), strict=True)]
    answer = desk.compare(*runs, paired=True)
    pairs = answer["paired"]
    assert [pair["run"] for pair in pairs] == [str(runs[1]), str(runs[2])]
    for pair, other in zip(pairs, (two, three), strict=True):
        lost, won = int((one & ~other).sum()), int((other & ~one).sum())
        assert (pair["only_first"], pair["only_second"]) == (lost, won)
        assert (pair["both"], pair["neither"]) == ((one & other).sum(), (~one & ~other).sum())
        assert pair["p"] == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
        assert pair["p"] > pair["mid_p"]
        gain = other.astype(float) - one
        assert pair["difference"] == pytest.approx(gain.mean())
        expected = stats.bootstrap(
            (gain,), np.mean, method="percentile", n_resamples=2000, batch=1,
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert pair["difference_interval"] == pytest.approx(list(expected))
    small, large = sorted(pair["p"] for pair in pairs)
    found = sorted(pair["p_holm"] for pair in pairs)
    assert found == pytest.approx([2 * small, max(2 * small, large)])
    assert "p_holm" not in desk.compare(*runs[:2], paired=True)["paired"][0]


def test_other_videos_are_an_error_or_left_out_with_their_number(desk: Desk) -> None:
    right = flips(10, 0.5)
    one = desk.result("a", right)
    ids = [f"v/{number}.mp4" for number in range(3, 13)]
    two = desk.result("b", np.roll(right, -3), ids=ids)
    with pytest.raises(DataError, match="7 are in both, 3 only in the first, 3 only") as error:
        desk.compare(one, two, paired=True)
    assert "--common" in str(error.value.hint)
    pair = desk.compare(one, two, paired=True, common=True)["paired"][0]
    assert (pair["videos"], pair["beside"]) == (7, [3, 3])
    assert pair["only_first"] == pair["only_second"] == 0  # the same videos, named the same
    three = desk.result("c", right, ids=[f"w/{number}.mp4" for number in range(10)])
    with pytest.raises(DataError, match="no videos in common"):
        desk.compare(one, three, paired=True, common=True)
    four = desk.result("d", right, ids=[f"v/{number}.mp4" for number in (1, 0, *range(2, 10))])
    with pytest.raises(DataError, match=r"different labels for 2 videos, such as `v/0\.mp4`"):
        desk.compare(one, four, paired=True)
    five = desk.result("e", right, names=["a", "b", "x"])
    with pytest.raises(DataError, match="different classes"):
        desk.compare(one, five, paired=True)


def test_segments_of_a_file_widen_the_interval_and_are_warned_of(desk: Desk) -> None:
    one, two = flips(12, 0.5, 1).repeat(10), flips(12, 0.7, 2).repeat(10)
    source = np.arange(12).repeat(10)
    runs = [desk.result(n, r, source=source) for n, r in (("a", one), ("b", two))]
    low, high = desk.compare(*runs, paired=True)["paired"][0]["difference_interval"]
    assert "segments of one file" in desk.stderr.getvalue()
    apart = [desk.result(n, r) for n, r in (("c", one), ("d", two))]
    narrow = desk.compare(*apart, paired=True)["paired"][0]["difference_interval"]
    assert high - low > 2 * (narrow[1] - narrow[0])


def test_seeds_of_a_recipe_are_one_row(desk: Desk) -> None:
    stats = pytest.importorskip("scipy.stats")
    rights = [flips(50, 0.6, seed) for seed in range(3)]
    runs = [desk.result(f"s{seed}", right, seed=seed) for seed, right in enumerate(rights)]
    other = desk.result("other", flips(50, 0.3), init="runs/pretrained")
    joined, alone = desk.compare(*runs, other, group=True)["groups"]
    values = [right.mean() for right in rights]
    assert (joined["seeds"], joined["runs"]) == ([0, 1, 2], [str(run) for run in runs])
    assert joined["top1"]["mean"] == pytest.approx(np.mean(values))
    assert joined["top1"]["std"] == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert joined["top1"]["interval"] == pytest.approx(list(expected))
    assert (alone["seeds"], alone["top1"]["std"], alone["top1"]["interval"]) == ([0], None, None)
    with pytest.raises(DataError, match="same recipe and the same seed, 0"):
        desk.compare(runs[0], desk.result("again", rights[0]), group=True)


def test_the_newest_or_the_named_result_of_a_run_is_taken(desk: Desk) -> None:
    right = flips(9, 0.5)
    run = desk.result("a", right)
    desk.result("a", right, file="knn-test-1x1", protocol="knn", split="test",
                started="2026-01-02T00:00:00+00:00")  # fmt: skip
    (run / "results" / "broken.json").write_text("{")
    (run / "results" / "reconstruction-val-1x1.json").write_text(
        json.dumps(
            {"protocol": "reconstruction", "split": "val", "segments": 1, "crops": 1}
            | {"recipe": {"run": {"seed": 0}}}
        )
    )

    def taken(**options: Any) -> str:
        return Path(desk.compare(run, **options)["results"][0]["result"]).stem

    assert taken() == "knn-test-1x1"
    assert taken(split="val") == taken(protocol="finetuned") == "finetuned-val-1x1"
    assert taken(name="finetuned-val-1x1") == taken(name="finetuned-val-1x1.json")
    with pytest.raises(DataError, match="for `--split train`") as error:
        taken(split="train")
    assert "`knn-test-1x1`, `finetuned-val-1x1`" in str(error.value.hint)
    file = run / "results" / "knn-test-1x1.json"
    desk.compare(run / "results" / "finetuned-val-1x1.json", file)
    said = desk.stderr.getvalue()
    assert "different protocols: finetuned, knn" in said and "different splits: test, val" in said


def test_weights_of_others_are_compared_by_the_results_evaluate_gave_them(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = desk.result("a", flips(9, 0.5))
    (tmp_path / "runs").mkdir()
    written.rename(tmp_path / "runs" / "videomae-base")
    hub = tmp_path / "hub" / "videomae-base"
    hub.mkdir(parents=True)
    (hub / "config.json").write_text("{}")
    assert find_result(hub).path.parent == Path("runs/videomae-base/results")
    (tmp_path / "hub" / "other").mkdir()
    (tmp_path / "hub" / "other" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no classification result"):
        find_result(tmp_path / "hub" / "other")


def test_what_cannot_be_compared_is_said(desk: Desk, tmp_path: Path) -> None:
    right = flips(9, 0.5)
    run, other = desk.result("a", right), desk.result("b", right)
    for options in ({"group": True, "paired": True}, {"common": True}):
        with pytest.raises(UsageError):
            desk.compare(run, other, **options)
    with pytest.raises(UsageError, match="needs at least two"):
        desk.compare(run, paired=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no classification result"):
        desk.compare(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        desk.compare(tmp_path / "nothing.json")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"protocol": "knn", "split": "val", "recipe": {}}')
    for name in ("list", "other"):
        with pytest.raises(DataError, match="is not a result"):
            desk.compare(tmp_path / f"{name}.json")
    scores = other / "results" / "finetuned-val-1x1.safetensors"
    content = bytearray(scores.read_bytes())
    content[-1] ^= 1
    scores.write_bytes(content)
    with pytest.raises(DataError, match="has changed since"):
        desk.compare(run, other, paired=True)
    scores.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        desk.compare(run, other, paired=True)


def test_the_command_prints_tables_or_one_object(desk: Desk, cli: Callable[..., Any]) -> None:
    runs = [desk.result(name, flips(30, 0.5, seed), seed=seed) for seed, name in enumerate("abc")]
    found = cli("compare", *runs, "--paired", "--json")
    assert found.code == 0 and set(found.json()) == {"results", "paired", "test"}
    table = cli("compare", *runs, "--group")
    assert table.code == 0 and "over seeds" in table.stdout
    assert cli("compare", *runs, "--paired").code == 0
    assert cli("compare", runs[0], runs[1], "--common").code == 2
    assert cli("compare", runs[0].parent / "nothing").code == 1
