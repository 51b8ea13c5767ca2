"""`tats report`: what a run has is on its page, and what it has not is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.report import report

Trained = Callable[..., Path]
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


class Parts(HTMLParser):
    """Headings with the figures and the text that follow each."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.figures: dict[str, int] = {}
        self.text: dict[str, str] = {}
        self._heading, self._in_heading = "", False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._in_heading = tag == "h2"
        if tag in ("figure", "svg"):
            self.figures[self._heading] = self.figures.get(self._heading, 0) + 1

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._heading, self._in_heading = data, False
        self.text[self._heading] = self.text.get(self._heading, "") + data


@pytest.fixture
def finetuned(trained: Trained, reporter: Reporter) -> Path:
    """A fine-tuned run with an evaluation."""
    run = trained(task=finetune)
    evaluate(run, reporter=reporter)
    return run


def test_a_pretraining_shows_curves_masks_neighbours_and_its_recipe(
    trained: Trained, reporter: Reporter
) -> None:
    run = trained(task=pretrain)
    written = report(run, reporter=reporter, clips=2)
    page = Parts(run / "report.html")
    assert written["left_out"] == []
    assert page.figures["Curves"] >= 4
    assert page.figures["Masks"] >= 4  # input, probability, visible, reconstruction, ...
    assert "visible tokens" in page.text["Masks"]
    assert page.figures["Nearest neighbours"] == 2 * (1 + 5)
    assert "kind: tats" in page.text["Recipe"]
    assert "not a shipped recipe" in page.text["Recipe"]
    assert json.loads((run / "run.json").read_text())["platform"] in page.text["Environment"]
    assert "None yet" in page.text["Evaluations"]


def test_an_evaluation_is_shown_by_class_and_by_video(finetuned: Path, reporter: Reporter) -> None:
    report(finetuned, reporter=reporter, clips=2)
    page = Parts(finetuned / "report.html")
    assert page.figures["Confusion"] == 1
    for name in ("left", "right", "down"):
        assert name in page.text["Top-1 by class"]
    assert page.figures["Best and worst videos"] == 4
    assert "Masks" not in page.text  # a classifier masks nothing
    # A newer one of an untrained encoder is no number of this run.
    (result,) = (finetuned / "results").glob("*.json")
    facts = json.loads(result.read_text()) | {"untrained": True, "started": "2999-01-01"}
    result.with_name("untrained-knn.json").write_text(json.dumps(facts))
    report(finetuned, reporter=reporter, clips=0)
    text = Parts(finetuned / "report.html").text
    assert f"From {result.stem}." in text["Top-1 by class"]
    assert "untrained-knn" in text["Evaluations"]


def test_a_key_that_differs_from_the_shipped_recipe_is_named(
    trained: Trained, reporter: Reporter
) -> None:
    run = trained(task=pretrain)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"recipe": "mgm-small"}))
    report(run, reporter=reporter, clips=0)
    text = Parts(run / "report.html").text["Recipe"]
    assert "differ from mgm/small" in text
    assert "data.frames" in text and "optim.epochs" in text


def test_without_its_store_the_page_says_so_and_has_the_rest(
    finetuned: Path, reporter: Reporter
) -> None:
    written = report(finetuned, reporter=reporter, overrides=["data.store=gone"])
    page = Parts(finetuned / "report.html")
    assert "there is no store at gone" in page.text["Clips"]
    assert page.figures["Curves"] and page.figures["Confusion"]
    assert len(written["left_out"]) == 1


def test_results_on_other_videos_are_not_shown_beside_these(
    finetuned: Path, reporter: Reporter
) -> None:
    (result,) = (finetuned / "results").glob("*.json")
    facts = json.loads(result.read_text())
    result.write_text(json.dumps(facts | {"store_fingerprint": "0" * 64}))
    report(finetuned, reporter=reporter, clips=1)
    assert "on another store" in Parts(finetuned / "report.html").text["Best and worst videos"]


def test_files_that_a_kill_cut_off_cost_no_more_than_they_held(
    trained: Trained, reporter: Reporter
) -> None:
    run = trained(task=pretrain)
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 99, "loss": 0.')
    (run / "run.json").write_text('{"recipe": "ti')
    written = report(run, reporter=reporter, clips=0)
    assert "run.json` cannot be read" in written["left_out"][0]
    assert "to 99" not in Parts(run / "report.html").text["Curves"]


def test_wrong_inputs_write_nothing(finetuned: Path, reporter: Reporter, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        report(finetuned, reporter=reporter, out=out)
    with pytest.raises(DataError, match="is not a result"):
        report(finetuned, reporter=reporter, result=finetuned / "run.json")
    with pytest.raises(UsageError, match="is a checkpoint"):
        report(finetuned / "checkpoints" / "last", reporter=reporter)
    with pytest.raises(CheckpointError, match="does not exist"):
        report(tmp_path / "nothing", reporter=reporter)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="another program wrote"):
        report(tmp_path / "hub", reporter=reporter)
    assert out.read_text() == "mine"
    assert not (finetuned / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_sideways_scroll(
    width: int, finetuned: Path, reporter: Reporter, tmp_path: Path
) -> None:
    report(finetuned, reporter=reporter, clips=2)
    page, picture = finetuned.resolve() / "report.html", tmp_path / "page.png"
    probe = tmp_path / "probe.html"  # the page's own width, as text
    probe.write_text(
        page.read_text().replace(
            "</body>",
            "<script>document.title = document.documentElement.scrollWidth</script></body>",
        )
    )
    assert CHROMIUM is not None
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    shot = [f"--window-size={width},3000", f"--screenshot={picture}", page.as_uri()]
    subprocess.run([*browser, *shot], check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 20_000
    if keep := os.environ.get("TATS_KEEP_PICTURES"):
        shutil.copy(picture, Path(keep) / f"report-{width}.png")
    shown = subprocess.run(
        [*browser, f"--window-size={width},900", "--dump-dom", probe.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert int(shown.partition("<title>")[2].partition("</title>")[0]) <= max(width, 500)
