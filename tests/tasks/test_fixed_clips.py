"""Codes and scores of fixed clips: written once, and the same as those made on the way.

The tokenizer codes windows of four frames; clips of ten have two whole windows and a half.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from tatscli.console import Reporter
from tatscli.data.batch import collate
from tatscli.data.dataset import PretrainClips
from tatscli.data.views import EvalViews
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import DataError, RecipeError, UsageError
from tatscli.lock import locked
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import AdaptiveTokenizer, RunTokenizer
from tatscli.store.codes import Codes, scores_key
from tatscli.store.reader import Store
from tatscli.system.system import build_system
from tatscli.tasks import encode as encoding
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.encode import encode_recipe, encode_store
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import visualize_masks
from tatscli.tokenizer.load import open_run
from tests.clips import pan, render
from tests.conftest import Outcome
from tests.tasks.runs import metrics
from tests.tokenizer.saved import save_tokenizer
from tests.tokenizer.windows import DIGEST, WindowTokenizer, give

Load = Callable[..., LoadedRecipe]
FIXED = ("mask.kind=random", "data.crop=centre", "data.frames=10", "data.sampling.clips=3")


def latents(cached: bool, **keys: object) -> str:
    more = "".join(f", {key}: {value}" for key, value in keys.items())
    return (
        f"targets=[{{kind: latents, tokenizer: {{kind: run, path: runs/windows}}, "
        f"cached: {str(cached).lower()}{more}}}]"
    )


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> WindowTokenizer:
    found = WindowTokenizer()
    give(monkeypatch, found)
    return found


@pytest.fixture(scope="module")
def encoded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store with codes of three fixed clips of ten frames."""
    folder = tmp_path_factory.mktemp("encoded")
    shutil.copytree(store, folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        give(patch, WindowTokenizer())
        encode(recipe_in(folder, folder / "store"), folder / "store")
    return folder / "store"


def recipe_in(folder: Path, store: Path) -> LoadedRecipe:
    from tatscli.recipe.load import load_recipe
    from tests.tasks.conftest import RECIPE

    (folder / "fixed.yaml").write_text(RECIPE.format(store=store))
    return load_recipe(folder / "fixed.yaml", [*FIXED, latents(True)])


def encode(loaded: LoadedRecipe, store: Path) -> dict[str, Any]:
    return encode_recipe(store, loaded, reporter=Reporter(quiet=True))


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_what_was_written_trains_as_what_is_made_on_the_way(
    tokenizer: WindowTokenizer, encoded: Path, load: Load, reporter: Reporter, loss: str
) -> None:
    overrides = (*FIXED, f"data.store={encoded}", "run.max_steps=3", "predict={kind: tokenizer}")
    pretrain(load(*overrides, latents(False, loss=loss)), reporter=reporter, out="runs/asked")
    asked = len(tokenizer.parts)
    assert asked == 3 * 3 and set(tokenizer.parts) == {4, 2}  # once in each step
    pretrain(load(*overrides, latents(True, loss=loss)), reporter=reporter, out="runs/read")
    assert len(tokenizer.parts) == asked  # not at all
    for part in ("model", "optimizer"):
        one, two = (find_checkpoint(Path(run)).tensors(part) for run in ("runs/asked", "runs/read"))
        assert all(torch.equal(value, two[name]) for name, value in one.items()), part
    names = ("loss", "loss/latents", "visible_slice_min")
    one, two = metrics("runs/asked"), metrics("runs/read")
    assert [[line[name] for name in names] for line in one] == [
        [line[name] for name in names] for line in two
    ]
    facts = find_checkpoint(Path("runs/read")).meta["frozen"]
    assert [fact["sha256"] for fact in facts] == [DIGEST, DIGEST]


def test_codes_are_bit_equal_and_scores_to_half_precision(
    tokenizer: WindowTokenizer, encoded: Path, load: Load
) -> None:
    loaded = load(*FIXED, latents(True), f"data.store={encoded}", "predict={kind: tokenizer}")
    recipe, store = loaded.recipe, Store.open(encoded)
    system = build_system(recipe)
    (key,) = system.cached_codes
    clips = PretrainClips(
        store, store.part(None), recipe.data, patch=8, seed=3, follows_motion=False, codes=[key]
    )
    views = EvalViews(
        store, store.part(None), recipe.data, sampling=recipe.data.sampling, segments=3
    )
    shown = [view[0].video_CTHW for view in (views[item] for item in range(3 * len(clips)))]
    drawn = set()
    for epoch in range(2):
        batch = collate([clips[epoch, row][0] for row in range(len(clips))])
        clip = system.clip_of(batch)
        own = tokenizer.code(clip.unit_BCTHW)
        assert own.codes_Bthw.shape == (18, 5, 4, 4)
        assert torch.equal(batch.codes[key], own.codes_Bthw)
        scores = batch.codes[scores_key(key)]
        assert scores.dtype == torch.float32
        assert torch.equal(scores, own.scores_Bthw.half().float())
        assert torch.equal(system.predict.saliency_BN(clip), scores.flatten(1))
        for row, video in enumerate(batch.video_BCTHW):
            (number,) = [k for k in range(3) if torch.equal(video, shown[3 * row + k])]
            drawn.add(number)
    assert drawn == {0, 1, 2}


@pytest.mark.slow
def test_a_trained_tokenizer_of_windows_is_cached_as_it_answers(
    store: Path, load: Load, reporter: Reporter, tmp_path: Path
) -> None:
    """The adaptive one: three windows, the last one filled up, and scores across both seams."""
    config = AdaptiveTokenizer(
        kind="adaptive", stride=8, patch=4, widths=[8, 16], blocks=1, scorer_width=4, levels=[4, 5],
        keep=5,
    )  # fmt: skip
    coder = save_tokenizer(tmp_path / "coder", config, size=32, frames=4)
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    target = [latents(cached, loss="cross_entropy") for cached in (False, True)]
    target = [one.replace("runs/windows", str(coder)) for one in target]
    overrides = (*FIXED, f"data.store={copy}", "run.max_steps=3", "predict={kind: tokenizer}")
    encode(load(*overrides, target[1]), copy)
    recipe, opened = load(*overrides, target[1]).recipe, Store.open(copy)
    system = build_system(recipe)
    clips = PretrainClips(
        opened, opened.part(None), recipe.data, patch=8, seed=3, follows_motion=False,
        codes=system.cached_codes,
    )  # fmt: skip
    batch = collate([clips[0, row][0] for row in range(len(clips))])
    own = open_run(coder)[0].eval().code(batch.video_BCTHW.float() / 255)
    (key,) = system.cached_codes
    assert torch.equal(batch.codes[key], own.codes_Bthw)
    assert len(own.codes_Bthw.unique()) > 5 and own.scores_Bthw.std() > 0
    torch.testing.assert_close(batch.codes[scores_key(key)], own.scores_Bthw, rtol=1e-3, atol=1e-6)
    for out, changes in zip(("runs/asked", "runs/read"), target, strict=True):
        pretrain(load(*overrides, changes), reporter=reporter, out=out)
    asked, read = metrics("runs/asked"), metrics("runs/read")
    assert [one["loss"] for one in asked] == pytest.approx([one["loss"] for one in read])
    # A file has no codes in a store: pictures ask the tokenizer.
    render(tmp_path / "clip.mp4", pan((2, 0), frames=12, height=48, width=64, seed=3))
    drawn = visualize_masks(
        tmp_path / "clip.mp4", reporter=reporter, run=Path("runs/read"), out=tmp_path / "a.png"
    )
    assert len(drawn["windows"][0]["error"]) == system.predict.budget == 12
    # A tokenizer that both ask is counted once, and of the target.
    own = f"predict={{kind: tokenizer, tokenizer: {{kind: run, path: {coder}}}}}"
    for changes, counted in ((target[0], "targets"), ("targets=[{kind: pixels}]", "selection")):
        work = plan_pretraining(load(*overrides[:-1], own, changes), Path("runs/plan"))
        assert set(work["gflops_per_clip"]) == {"encoder", "head", counted}
        assert work["gflops_per_clip"][counted] > 0


def test_all_fixed_clips_of_a_video_by_the_clock_are_written(
    tokenizer: WindowTokenizer, store: Path, load: Load, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    sampling = "data.sampling={mode: dense, fps: 12, clips: 2}"
    loaded = load(*FIXED[:3], sampling, latents(True, scale=0.5), "model.patch=16")
    result = encode(loaded, copy)
    assert (result["videos"], result["clips"], result["frames"]) == (18, 2, 18 * 2 * 10)
    (file,) = Path(result["codes"]).glob("*.safetensors")
    assert file.parent.name.startswith(f"{DIGEST[:16]}-32x32-x0.5-10x2-")
    found = load_file(file)
    opened = Store.open(copy)
    views = EvalViews(
        opened,
        opened.part(None),
        loaded.recipe.data,
        sampling=loaded.recipe.data.sampling,
        segments=2,
    )
    for item in range(36):
        (view,) = views[item]
        unit = view.video_CTHW[None].float() / 255
        small = torch.nn.functional.interpolate(
            unit[0].transpose(0, 1), (16, 16), mode="bilinear", antialias=True
        )
        own = tokenizer.code(small.transpose(0, 1)[None])
        name = opened.rows[view.row].id
        codes, scores = found[f"{name}/codes"], found[f"{name}/scores"]
        assert (codes.dtype, scores.dtype) == ("int32", "float16")
        assert codes.shape == scores.shape == (2, 5, 2, 2)
        assert torch.equal(torch.from_numpy(codes[item % 2]).long(), own.codes_Bthw[0])
        assert torch.equal(torch.from_numpy(scores[item % 2]), own.scores_Bthw[0].half())


def test_no_more_than_a_window_is_decoded_before_it_is_coded(
    store: Path, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []

    class Watched(WindowTokenizer):
        def _means(self, frames: torch.Tensor) -> torch.Tensor:
            events.append(("coded", frames.shape[2]))
            return super()._means(frames)

    give(monkeypatch, Watched())
    decode = encoding.decode_jpegs

    def decoding(jpegs: list[Any]) -> torch.Tensor:
        events.append(("decoded", len(jpegs)))
        return decode(jpegs)

    monkeypatch.setattr(encoding, "decode_jpegs", decoding)
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    encode(load("mask.kind=random", "data.crop=centre", "data.sampling.clips=1", "data.frames=200",
                latents(True)), copy)  # fmt: skip
    assert len(events) == 18 * 2 * 50
    assert set(events) == {("decoded", 4), ("coded", 4)}
    assert all(one[0] != two[0] for one, two in itertools.pairwise(events))


def test_it_goes_on_where_it_was_and_two_at_once_are_refused(
    tokenizer: WindowTokenizer, encoded: Path, load: Load, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(encoded, copy)
    loaded = load(*FIXED, latents(True))
    (folder,) = (copy / "codes").iterdir()
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "index.json").unlink()
    assert encode(loaded, copy)["shards"] == 0
    assert tokenizer.parts == []
    next(folder.glob("*.safetensors")).unlink()
    lock = copy / "codes" / f".{folder.name}.lock"
    with (
        locked(lock, folder, Reporter(quiet=True)),
        pytest.raises(DataError, match=f"`{folder}` is in use by process"),
    ):
        encode(loaded, copy)
    assert encode(loaded, copy)["shards"] == 1
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert not lock.exists()
    manifest = copy / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"checksum":"', '"checksum":"0'))
    assert encode(loaded, copy)["shards"] == 1


def test_codes_that_are_missing_or_of_other_clips_are_told_before_training(
    tokenizer: WindowTokenizer, encoded: Path, load: Load, reporter: Reporter
) -> None:
    given = (*FIXED, f"data.store={encoded}", latents(True))
    assert plan_pretraining(load(*given), Path("runs/plan"))["videos"] == 12
    for other in ("data.sampling.clips=2", "data.sampling.stride=2", "data.frames=8"):
        words = (
            r"has no codes of this tokenizer for this view .*; it has codes for other views: `0123"
        )
        with pytest.raises(DataError, match=words) as refused:
            plan_pretraining(load(*given, other), Path("runs/plan"))
        assert "--recipe RECIPE" in str(refused.value.hint)
        with pytest.raises(DataError, match=words):
            pretrain(load(*given, other), reporter=reporter, out="runs/wrong")
    # Of `predict` alone, too.
    alone = "predict={kind: tokenizer, tokenizer: {kind: run, path: x}, cached: true}"
    fixed = (*FIXED[:3], "data.sampling.clips=2", f"data.store={encoded}")
    with pytest.raises(DataError, match="has no codes of this tokenizer"):
        plan_pretraining(load(*fixed, alone), Path("runs/plan"))


def test_damaged_codes_are_told(
    tokenizer: WindowTokenizer, encoded: Path, load: Load, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(encoded, copy)
    (folder,) = (copy / "codes").iterdir()
    (file,) = folder.glob("*.safetensors")
    tensors, whole = load_file(file), file.read_bytes()
    store = Store.open(copy)
    name = store.rows[0].id
    without = {key: value for key, value in tensors.items() if key != f"{name}/scores"}
    fewer = tensors | {f"{name}/codes": tensors[f"{name}/codes"][:1]}
    for damage in (
        lambda: file.write_bytes(whole[: len(whole) // 2]),
        lambda: save_file(without, file),
        lambda: save_file(fewer, file),
        file.unlink,
    ):
        damage()
        with pytest.raises(DataError, match=f"the codes of `{name}` in .* are damaged or missing"):
            Codes(store, folder.name).read(0, [], clip=2)


def test_clips_that_begin_anywhere_cannot_be_cached(
    tokenizer: WindowTokenizer, store: Path, load: Load, reporter: Reporter
) -> None:
    anywhere = load(*FIXED[:3], latents(True))
    words = "with `data.sampling.clips: null` clips start at any frame"
    with pytest.raises(RecipeError, match=words) as refused:
        plan_pretraining(anywhere, Path("runs/plan"))
    assert "`targets`: `latents` of `runs/windows` with `cached: true`" in str(refused.value)
    with pytest.raises(UsageError, match=words):
        encode(anywhere, store)
    source = RunTokenizer(kind="run", path="runs/windows")
    with pytest.raises(UsageError, match="looks at several frames at once") as lacking:
        encode_store(store, source, size=(32, 32), reporter=reporter)
    assert "`--recipe RECIPE`" in str(lacking.value.hint)
    with pytest.raises(UsageError, match=r"`data\.frames: 9` is not a multiple of the 2 frames"):
        encode(load(*FIXED[:2], "data.frames=9", "model.tubelet=1", FIXED[3], latents(True)), store)
    with pytest.raises(UsageError, match="nothing in it is `cached: true`"):
        encode(load(*FIXED, latents(False)), store)
    assert not (store / "codes").exists()


def test_the_command_reads_the_recipe_and_what_the_line_changes(
    tokenizer: WindowTokenizer,
    store: Path,
    recipe_file: Path,
    cli: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    words = ("store", "encode", copy, "--json", "--recipe", recipe_file, *FIXED)
    outcome = cli(*words, latents(True))
    assert outcome.code == 0, outcome.stderr
    result = outcome.json()
    assert (result["clips"], result["frames"], result["codebook_size"]) == (3, 540, 64)
    index = json.loads((Path(result["codes"]) / "index.json").read_text())
    assert (index["size"], index["frames"], index["clips"]) == ([32, 32], 10, 3)
    assert index["sampling"]["stride"] == 1 and index["scores"] is True
    other = cli(*words, latents(False), "--tokenizer", "runs/x", "--size", "16", "--scale", "2")
    assert other.code == 0, other.stderr
    assert "-16x16-x2-10x3-" in other.json()["codes"]
    for wrong, said in (
        (("store", "encode", copy), "give `--recipe RECIPE` or `--tokenizer PATH`"),
        (("store", "encode", copy, "data.size=3", "--tokenizer", "x"), "no `--recipe` is given"),
    ):
        outcome = cli(*wrong)
        assert outcome.code == 2 and said in outcome.stderr
