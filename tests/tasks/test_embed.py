"""`tats embed`: against the encoder itself; continued after a kill; flat in memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from tatscli.api import load
from tatscli.console import Reporter
from tatscli.data.views import EvalViews
from tatscli.engine.session import session
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.features import PooledFeatures, collect_features
from tatscli.store.reader import Store
from tatscli.tasks import embed as module
from tatscli.tasks.embed import embed
from tests.clips import pan, render
from tests.small_runs import NAMES, render_films, save_run, store_of, tiny_recipe

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    save_run(folder / "run", tiny_recipe(), names=None)
    save_run(folder / "tuned", tiny_recipe(), seed=1)
    store_of(render_films(folder / "videos"), folder / "store")
    return folder


def names_of(tensors: dict[str, np.ndarray]) -> list[str]:
    return tensors["names"].tobytes().decode().split("\0")


def run_embed(*sources: Path, run: Path, out: Path, **options: Any) -> dict[str, np.ndarray]:
    embed(sources, run, reporter=QUIET, out=out, device="cpu", **options)
    assert not list(out.parent.glob(f"*{out.name}.*")), "parts or a lock are left"
    return load_file(out)


def test_features_of_a_store_are_those_of_frozen_evaluation(home: Path, tmp_path: Path) -> None:
    store, recipe = Store.open(home / "store"), tiny_recipe()
    encoder = load(home / "run", device="cpu").encoder
    for layer, per in ((None, "clip"), (1, "window")):
        views = EvalViews(store, store.part("val"), recipe.data, sampling=recipe.data.sampling)
        with session(recipe.run, QUIET) as here:
            expected = collect_features(
                PooledFeatures(encoder, layer=layer), views, recipe, here, dtype=torch.float32
            )
        found = run_embed(
            home / "store", run=home / "run", out=tmp_path / f"{per}.safetensors",
            per=per, layer=layer, split="val", windows=1,
        )  # fmt: skip
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"], expected.value_RVX[:, 0], atol=1e-6)
        assert found["label"].tolist() == expected.label_R.tolist()
        assert names_of(found) == [f"val/{name}/a.mp4" for name in NAMES]
        assert found["video"].tolist() == [0, 1, 2]


def test_rows_are_clips_windows_or_all_tokens_of_windows(home: Path, tmp_path: Path) -> None:
    model = load(home / "tuned", device="cpu")
    found = {
        per: run_embed(
            home / "videos", run=home / "tuned", out=tmp_path / f"{per}.safetensors", per=per
        )
        for per in ("clip", "window", "token")
    }
    assert "label" not in found["clip"]
    windows = [model.windows().of(film) for film in module.find_videos([home / "videos"])[0]]
    row = 0
    for video, stream in enumerate(windows):
        seen = []
        for window in stream:
            with torch.no_grad():
                tokens_1ND = model.features(model.preprocess(
                    window.views_VCTHW[0].permute(1, 2, 3, 0)
                ))  # fmt: skip
            token, single = found["token"], found["window"]
            np.testing.assert_allclose(token["features"][row], tokens_1ND[0], atol=1e-5)
            np.testing.assert_allclose(single["features"][row], tokens_1ND[0].mean(0), atol=1e-5)
            for one in (token, single):
                assert one["video"][row] == video
                assert (one["start"][row], one["end"][row]) == window.span[:2]
            seen.append(single["features"][row])
            row += 1
        clip = found["clip"]
        np.testing.assert_allclose(clip["features"][video], np.mean(seen, axis=0), atol=1e-6)
        assert (clip["start"][video], clip["end"][video]) == (0, window.span.end)
    assert found["token"]["features"].shape == (row, 64, 32)


@pytest.mark.parametrize("source", ["videos", "store"])
def test_threads_change_no_bit(home: Path, tmp_path: Path, source: str) -> None:
    files = []
    for workers in (0, 3):
        run = save_run(
            tmp_path / str(workers) / "run", tiny_recipe(data={"workers": workers}), names=None
        )
        files.append(tmp_path / f"{workers}.safetensors")
        run_embed(home / source, run=run, out=files[-1], per="window", every=0.1)
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_the_file_says_how_it_was_made(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    result = embed(
        [home / "store"], home / "run", reporter=QUIET, out=out, precision="float16", windows=2,
        per="window", layer=0, device="cpu",
    )  # fmt: skip
    assert result["shape"] == [6, 32]
    with safe_open(out, framework="numpy") as file:
        facts = file.metadata()
        assert facts["checkpoint_sha256"] == result["checkpoint_sha256"]
        assert (facts["per"], facts["layer"], facts["windows"]) == ("window", "0", "2")
        assert facts["class_names"] == '["falls", "rises", "turns"]'
        assert file.get_tensor("features").dtype == np.float16


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that sees two windows at once and writes a part for every two, here."""
    monkeypatch.setattr(module, "PART_BYTES", 0)
    recipe = tiny_recipe(data={"sampling": {"stride": 1}})
    few = recipe.evaluate.model_copy(update={"batch_per_device": 2})
    return save_run(tmp_path / "run", recipe.model_copy(update={"evaluate": few}), names=None)


@pytest.mark.parametrize("per", ["clip", "window", "token"])
def test_a_run_goes_on_to_the_same_bytes_from_every_part(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Path, per: str
) -> None:
    out = tmp_path / "f.safetensors"
    parts = out.with_name(f"{out.name}.parts")
    add = module.FeatureParts.add

    def keep(self: module.FeatureParts, *given: Any) -> None:
        add(self, *given)
        shutil.copytree(parts, tmp_path / f"after-{len(self.files)}")

    with monkeypatch.context() as patched:
        patched.setattr(module.FeatureParts, "add", keep)
        embed([home / "videos"], pairs, reporter=QUIET, out=out, per=per, device="cpu")
    expected = out.read_bytes()
    kept = sorted(tmp_path.glob("after-*"))
    assert len(kept) == 6  # 4 + 4 + 4 windows of 24, 25 and 26 frames by twos
    for folder in kept:
        out.unlink(missing_ok=True)
        folder.rename(parts)
        (parts / f".{9:06d}.safetensors.part").write_bytes(b"half a part")
        run_embed(home / "videos", run=pairs, out=out, per=per)
        assert out.read_bytes() == expected


def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path, pairs: Path) -> None:
    straight, halves = tmp_path / "straight.safetensors", tmp_path / "halves.safetensors"
    options: dict[str, Any] = {"per": "window", "device": "cpu", "reporter": QUIET}
    embed([home / "videos"], pairs, out=straight, **options)
    slowly = (
        "import sys, time\nimport tatscli.tasks.embed as embed\nfrom tatscli.cli import main\n"
        "take, embed.PART_BYTES, taken = embed.Embedding.take, 0, []\n"
        "def take_some(self, batch):\n"
        "    taken.append(batch)\n"
        "    return take(self, batch) if len(taken) < 5 else time.sleep(600)\n"
        "embed.Embedding.take = take_some\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["embed", home / "videos", "--run", pairs, "--per", "window", "--out", halves]
    process = subprocess.Popen([sys.executable, "-c", slowly, *words, "--device", "cpu", "-q"])
    parts = halves.with_name(f"{halves.name}.parts")
    while len(list(parts.glob("*.safetensors"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "it was done before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not halves.exists()
    with pytest.raises(UsageError, match="another run: `layer` was None, not 1"):
        embed([home / "videos"], pairs, out=halves, layer=1, **options)
    result = embed([home / "videos"], pairs, out=halves, **options)
    assert result["continued_at"] > 0
    assert halves.read_bytes() == straight.read_bytes()
    assert not parts.exists()


def test_ctrl_c_keeps_what_was_done(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Path
) -> None:
    out = tmp_path / "f.safetensors"
    take, calls = module.Embedding.take, 0

    def interrupted(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return take(self, batch)

    monkeypatch.setattr(module, "PART_BYTES", 1 << 24)
    monkeypatch.setattr(module.Embedding, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed([home / "videos"], pairs, reporter=QUIET, out=out, device="cpu")
    assert embed([home / "videos"], pairs, reporter=QUIET, out=out, device="cpu")["continued_at"]


def test_a_kill_between_naming_the_file_and_clearing_up_is_mended(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "f.safetensors", home / "run"
    with monkeypatch.context() as patched:
        patched.setattr(module.FeatureParts, "clear", lambda self: None)
        embed([home / "videos"], run, reporter=QUIET, out=out, device="cpu")
    before = out.read_bytes()
    assert (tmp_path / "f.safetensors.parts").exists()
    run_embed(home / "videos", run=run, out=out)
    assert out.read_bytes() == before


def test_a_file_is_replaced_only_when_asked(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    run_embed(home / "videos", run=home / "run", out=out)
    with pytest.raises(UsageError, match="exists") as caught:
        run_embed(home / "videos", run=home / "run", out=out)
    assert "--overwrite" in str(caught.value.hint)
    again = run_embed(home / "videos", run=home / "run", out=out, overwrite=True, per="token")
    assert again["features"].ndim == 3


def with_bad_ones(home: Path, folder: Path) -> Path:
    """The videos, and one among them that is none."""
    videos = folder / "videos"
    shutil.copytree(home / "videos", videos)
    (videos / "val" / "middle.mp4").write_bytes(b"no video")
    return videos


@pytest.mark.parametrize("per", ["clip", "window"])
def test_bad_videos_stop_it_or_are_left_out_and_counted(
    home: Path, tmp_path: Path, cli: Callable[..., Any], per: str
) -> None:
    videos, out = with_bad_ones(home, tmp_path), tmp_path / "f.safetensors"
    command = ("embed", videos, "--run", home / "run", "--out", out, "--per", per, "--json")
    outcome = cli(*command)
    assert outcome.code == 1
    assert "`val/middle.mp4` cannot be read: does not open" in outcome.stderr
    assert "--skip-bad" in outcome.stderr
    outcome = cli(*command, "--skip-bad")
    assert outcome.code == 0
    result = outcome.json()
    assert [one["name"] for one in result["skipped"]] == ["val/middle.mp4"]
    assert result["videos"] == 3
    good = run_embed(home / "videos", run=home / "run", out=tmp_path / "good.safetensors", per=per)
    found = load_file(out)
    assert names_of(found) == names_of(good)
    for name in ("features", "video", "start", "end"):
        np.testing.assert_allclose(found[name], good[name], atol=1e-6)
    for bad in (videos / "val").glob("*/a.mp4"):
        bad.write_bytes(b"no video")
    with pytest.raises(DataError, match="none of the 4 videos can be read"):
        run_embed(videos, run=home / "run", out=out, skip_bad=True, overwrite=True)


def test_rows_of_a_video_that_breaks_later_are_taken_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows of `rises` are on disk when it turns out that the third cannot be made."""
    good = run_embed(home / "videos", run=home / "run", out=tmp_path / "a.safetensors",
                     per="window", every=0.1)  # fmt: skip
    footage = module.FileFootage.frames

    def breaks(self: Any, short_side: int | None) -> Any:
        for index, frame in enumerate(footage(self, short_side)):
            if "rises" in self.name and index == 20:
                raise DataError("it breaks off")
            yield frame

    monkeypatch.setattr(module.FileFootage, "frames", breaks)
    monkeypatch.setattr(module, "PART_BYTES", 0)
    found = run_embed(home / "videos", run=home / "run", out=tmp_path / "b.safetensors",
                      per="window", every=0.1, skip_bad=True)  # fmt: skip
    assert names_of(found) == ["val/falls/a.mp4", "val/turns/a.mp4"]
    kept = good["video"] != 1
    np.testing.assert_allclose(found["features"], good["features"][kept], atol=1e-6)
    assert found["video"].tolist() == (good["video"][kept] // 2).tolist()
    np.testing.assert_array_equal(found["start"], good["start"][kept])


def test_numbers_that_mean_nothing_are_refused(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    run = save_run(tmp_path / "run", tiny_recipe(data={"std": [1e-38, 1e-38, 1e-38]}), names=None)
    with pytest.raises(CheckpointError, match=r"`val/falls/a\.mp4` are not finite"):
        run_embed(home / "videos", run=run, out=out, layer=1)
    run = save_run(tmp_path / "large", tiny_recipe(data={"std": [1e-6, 1e-6, 1e-6]}), names=None)
    with pytest.raises(UsageError, match="do not fit into float16"):
        run_embed(home / "videos", run=run, out=out, layer=0, precision="float16", overwrite=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "3"], "2 blocks"),
        (["--split", "val"], "`--split val` is for stores"),
        (["--out", "f.npy"], "suffix must be .safetensors"),
        (["--windows", "2", "--every", "1"], "exclude each other"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    home: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    outcome = cli("embed", home / "videos", "--run", home / "run", *words)
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_is_flat_over_two_hundred_videos(tmp_path: Path) -> None:
    """The file grows from 26 to 105 MB, and the process does not: 16 MB pass at once."""
    model = {"width": 512, "depth": 1, "heads": 2, "tubelet": 1, "patch": 8}
    save_run(
        tmp_path / "run", tiny_recipe(model=model, data={"sampling": {"stride": 1}}), names=None
    )
    first = render(tmp_path / "all" / "0.mp4", pan(frames=16, height=32, width=32))
    for number in range(1, 200):
        os.link(first, tmp_path / "all" / f"{number}.mp4")
    for number in range(50):
        (tmp_path / "few").mkdir(exist_ok=True)
        os.link(first, tmp_path / "few" / f"{number}.mp4")
    code = (
        "import resource, sys\nfrom tatscli.cli import main\npeaks = []\n"
        "for part in ('few', 'all'):\n"
        "    words = ['embed', part, '--run', 'run', '--per', 'token', '--layer', '0', '-q']\n"
        "    assert main(words) == 0\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(*peaks, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    few, everything = map(int, done.stderr.split())
    written = (tmp_path / "all.features.safetensors").stat().st_size
    assert written > 100e6
    assert (everything - few) * 1024 < 35e6
