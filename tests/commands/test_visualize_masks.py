"""`tats visualize-masks` from the command line: defaults, JSON, and every wrong input."""

import math

import av
import pytest

from tatscli.recipe.schema import AdaptiveTokenizer, Data, Sampling
from tatscli.visualize.windows import WindowReader
from tests.clips import pan, render
from tests.tokenizer.saved import save_tokenizer

SMALL = ["--size", 32, "--patch", 8, "--frames", 4, "--stride", 2]


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return render(tmp_path / "films" / "clip.mp4", pan(frames=20, height=48, width=64))


def test_the_picture_lands_beside_the_user_and_not_beside_the_clip(cli, clip, tmp_path):
    done = cli("visualize-masks", clip, *SMALL)
    assert done.code == 0 and done.stdout == ""
    assert "wrote clip.masks.mp4" in done.stderr
    with av.open(str(tmp_path / "clip.masks.mp4")) as container:
        assert container.streams.video[0].frames == 12


@pytest.mark.parametrize(("mask", "visible"), [("tube", 4), ("random", 3), ("tats", 3)])
def test_json_tells_every_token(cli, clip, mask, visible):
    found = cli("visualize-masks", clip, *SMALL, "--mask", mask, "--ratio", 0.9, "--json").json()
    assert (found["mask"], found["ratio"], found["grid"]) == (mask, 0.9, [2, 4, 4])
    assert found["out"] == "clip.masks.mp4"
    assert [window["frames"][0] for window in found["windows"]] == [0, 8, 12]
    for window in found["windows"]:
        assert len(window["visible"]) == visible
        assert sorted(window["visible"] + window["predict"]) == list(range(32))
        assert window["times"] == pytest.approx([frame / 25 for frame in window["frames"]])
        assert ("probability" in window) == (mask == "tats")
        assert len(window["visible_per_slice"]) == 2 and window["motion_lift"] >= 0
    assert found["temperature"] == (1 if mask == "tats" else None)
    if mask == "tats":
        assert math.isclose(sum(found["windows"][0]["probability"]), 1, abs_tol=1e-2)
        assert any("untrained" in note for note in found["notes"])
    assert found["as"] == "test" and not any("shorter" in note for note in found["notes"])


@pytest.mark.parametrize("suffix", ["png", "mp4"])
@pytest.mark.parametrize(("size", "grid"), [("24x40", [2, 3, 5]), ("40x24", [2, 5, 3])])
def test_a_view_need_not_be_square(cli, clip, size, grid, suffix):
    words = ["--size", size, "--mask", "mgm", "--out", f"oblong.{suffix}"]
    done = cli("visualize-masks", clip, *SMALL, *words, "--json")
    assert done.code == 0 and f" of 2 x {grid[1]} x {grid[2]} tokens" in done.stderr
    found = done.json()
    assert found["grid"] == grid
    for window in found["windows"]:
        assert sorted(window["visible"] + window["predict"]) == list(range(30))


def test_the_default_is_the_clip_and_mask_of_videomae(cli, clip):
    found = cli("visualize-masks", clip, "--out", "sheet.png", "--json", "--quiet").json()
    assert (found["mask"], found["ratio"], found["grid"]) == ("tube", 0.9, [8, 14, 14])
    assert len(found["windows"][0]["visible"]) == 160


def test_what_is_left_out_is_said(cli, clip):
    done = cli("visualize-masks", clip, *SMALL)
    assert "left out: sampler probability (the `tube` mask has no policy), recon" in done.stderr
    tats = cli("visualize-masks", clip, *SMALL, "--mask", "tats", "--temperature", 0.5)
    assert tats.code == 0
    assert "left out: reconstruction and error (they need `--run`)" in tats.stderr


def test_a_mask_comes_with_its_own_ratio(cli, clip):
    for mask, ratio in (("mgm", 0.75), ("mgm_advect", 0.9), ("tats", 0.9)):
        found = cli("visualize-masks", clip, *SMALL, "--mask", mask, "--json", "--quiet").json()
        assert (found["mask"], found["ratio"]) == (mask, ratio)
        assert found["windows"][0]["motion_hidden"] > 0


@pytest.mark.parametrize("suffix", ["png", "mp4", "gif"])
def test_masks_are_compared_in_one_picture(cli, clip, suffix):
    done = cli(
        "visualize-masks", clip, *SMALL, "--compare", "tube,mgm,simulated", "--out", f"a.{suffix}"
    )
    assert done.code == 0 and done.stdout == ""
    assert f"wrote a.{suffix}" in done.stderr and "masks tube, mgm, simulated" in done.stderr


def test_json_of_a_comparison_has_an_entry_a_mask(cli, clip):
    found = cli("visualize-masks", clip, *SMALL, "--compare", "tube,mgm", "--json").json()
    assert [one["mask"] for one in found["compare"]] == ["tube", "mgm"]
    assert "windows" not in found and found["grid"] == [2, 4, 4]
    for one in found["compare"]:
        alone = cli("visualize-masks", clip, *SMALL, "--mask", one["mask"], "--json").json()
        assert {"mask", "ratio", "temperature", "notes", "windows"} == one.keys()
        assert one["windows"] == alone["windows"]


@pytest.mark.parametrize("more", [[], ["--compare", "tube,random"]])
def test_a_sheet_has_so_many_columns(cli, clip, tmp_path, more):
    widths = []
    for columns in (1, 2):
        words = ["--columns", columns, "--out", f"{columns}.png"]
        assert cli("visualize-masks", clip, *SMALL, *words, *more).code == 0
        with av.open(str(tmp_path / f"{columns}.png")) as container:
            widths.append(container.streams.video[0].width)
    assert widths[1] - widths[0] == 192 + 4


def test_a_tokenizer_of_videos_shows_its_scores(cli, clip, tmp_path):
    config = AdaptiveTokenizer(
        kind="adaptive", stride=8, patch=4, widths=[8, 8], blocks=1, keep=10, scorer_width=8
    )
    run = save_tokenizer(tmp_path / "coder", config, size=32, frames=4)
    done = cli("visualize-masks", clip, "--run", run, "--stride", 2, "--json")
    found = done.json()
    assert found["out"] == "clip.codes.mp4" and (tmp_path / "clip.codes.mp4").is_file()
    assert (found["tokenizer"], found["codebook_size"]) == ("adaptive", 8**6)
    assert found["grid"] == [2, 4, 4] and " of 2 x 4 x 4 tokens" in done.stderr
    assert [window["frames"] for window in found["windows"]] == [
        [0, 2, 4, 6],
        [8, 10, 12, 14],
        [12, 14, 16, 18],
    ]
    assert {window["kept"] for window in found["windows"]} == {26 / 32}
    refused = cli("visualize-masks", clip, "--run", run, "--columns", 3)
    assert refused.code == 2 and "`--columns` is for a png" in refused.stderr


def test_clips_are_those_that_training_draws(cli, clip):
    words = ["--as", "train", "--windows", 2, "--seed", 3, "--out", "a.png", "--json"]
    found = cli("visualize-masks", clip, *SMALL, *words).json()
    data = Data(store="", frames=4, size=32, sampling=Sampling(stride=2))
    read = WindowReader(data, "train", 3).read(clip, grid=(4, 4), count=2)
    assert [one["frames"] for one in found["windows"]] == [window.frames for window in read]
    assert found["as"] == "train"
    assert any("as training draws them" in note for note in found["notes"])
    refused = cli("visualize-masks", clip, "--as", "val")
    assert refused.code == 2 and "--as" in refused.stderr


def test_seeds_repeat_and_differ(cli, clip):
    plans = [
        cli("visualize-masks", clip, *SMALL, "--seed", seed, "--json").json()["windows"]
        for seed in (3, 3, 4)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_a_recipe_gives_mask_and_shape(cli, clip):
    found = cli("visualize-masks", clip, "--recipe", "small", "--out", "a.png", "--json").json()
    assert (found["mask"], found["ratio"], found["grid"]) == ("tats", 0.75, [8, 7, 7])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--mask", "tub"], 2, "there is no mask `tub`: choose from `random`, `tube`"),
        (["--ratio", "1.5"], 2, "`mask.ratio: 1.5` must be less than 1"),
        (["--ratio", "0.999", "--mask", "random"], 2, "leaves none of 32 tokens visible"),
        (["--size", "33"], 2, "`data.size: 33` is not a multiple of `model.patch: 8`"),
        (["--size", "32x36"], 2, "the width of `data.size: [32, 36]` is not a multiple of"),
        (["--size", "0"], 2, "`--size 0` must be a number of pixels, such as `160`, or height x"),
        (["--size", "-32"], 2, "`--size -32` must be a number of pixels"),
        (["--size", "32x"], 2, "`--size 32x` must be a number of pixels"),
        (["--size", "32x0"], 2, "`--size 32x0` must be a number of pixels"),
        (["--size", "32x32x32"], 2, "`--size 32x32x32` must be a number of pixels"),
        (["--size", "big"], 2, "`--size big` must be a number of pixels"),
        (["--out", "masks.webp"], 2, "its suffix must be one of .mp4"),
        (["--out", "films/clip.mp4"], 2, "is the clip itself"),
        (["--run", "runs/none"], 2, "`--size`, `--frames`, `--patch` cannot be set"),
        (["--recipe", "smal"], 2, "no recipe `smal`"),
        (["--recipe", "small", "--run", "runs/none"], 2, "exclude each other"),
        (["--compare", "tube", "--mask", "tube"], 2, "`--compare` and `--mask` exclude each"),
        (["--compare", "tube", "--every", "1"], 2, "`--compare` and `--every` exclude each"),
        (["--compare", ""], 2, "names no mask: choose from `random`, `tube`"),
        (["--compare", "tube,mgn"], 2, "there is no mask `mgn` to compare: choose from"),
        (["--compare", "tube,random", "--ratio", "0.99"], 2, "the `random` mask: `mask.ratio"),
        (["--columns", "4"], 2, "`--columns` is for a png: `clip.masks.mp4` is a film"),
        (["--columns", "4", "--compare", "tube"], 2, "`--columns` is for a png"),
        (["--columns", "0", "--out", "a.png"], 2, "--columns"),
        (["--every", "1"], 2, "`--every` needs `--run`"),
        (["--every", "0"], 2, "--every"),
        (["--every", "often"], 2, "--every"),
        (["--temperature", "0.5"], 2, "`--temperature` needs a policy, and the `tube` mask has"),
        (["--temperature", "0", "--mask", "tats"], 2, "`--temperature 0` must lie between"),
        (["--temperature", "nan", "--mask", "tats"], 2, "`--temperature nan` must lie between"),
        (["--temperature", "warm"], 2, "--temperature"),
    ],
)
def test_wrong_options_are_one_message(cli, clip, arguments, code, words):
    # A later option overrides the same one before it.
    done = cli("visualize-masks", clip, *SMALL, *arguments)
    assert done.code == code
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not list(clip.parent.parent.glob("*.masks.mp4"))


def test_a_clip_that_cannot_be_read_is_named(cli, clip, tmp_path):
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(range(256)) * 9)
    for path in (noise, tmp_path / "missing.mp4"):
        done = cli("visualize-masks", path)
        assert done.code == 1 and f"error: `{path}`: " in done.stderr
    assert not list(tmp_path.glob("*.masks.mp4"))


def test_a_run_that_is_not_there_is_named(cli, clip):
    done = cli("visualize-masks", clip, "--run", "runs/none")
    assert done.code == 1 and "error: `runs/none` does not exist" in done.stderr
