"""The recipes in `recipes/`: valid, commented, found by name, with a schema that is up to date."""

import json
import math
import re
from pathlib import Path

import pytest

from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.recipe.shipped import recipes_folder, schema_text, shipped, shipped_name

RECIPES = shipped()
DATA_SETS = ["hmdb51", "k400", "ssv2", "ucf101"]
MGM = [f"mgm/{name}" for name in [*DATA_SETS, "small"]]
VIDEOMAE = [f"videomae/{name}" for name in DATA_SETS]
VARIANTS = ["k400-1600", "k400-small", "k400-large", "k400-huge", "ssv2-2400", "ssv2-small"]
VIDEOMAES = [*DATA_SETS, *MGM[:-1], *(f"mam2/{name}" for name in DATA_SETS), *VIDEOMAE]
"""Recipes that fine-tune as VideoMAE does."""
V2 = ["videomae2/base", "videomae2/giant"]
PUBLISHED = [*VIDEOMAES, *(f"videomae/{name}" for name in VARIANTS), *V2]


@pytest.fixture(params=RECIPES, ids=lambda one: one.name)
def one(request):
    return request.param


def test_the_recipes_of_this_repository_are_the_ones_found():
    assert recipes_folder() == Path(__file__).resolve().parents[2] / "recipes"
    assert {*PUBLISHED, "small", "mgm/small"} <= {one.name for one in RECIPES}


def test_it_loads_and_reads_the_store_of_its_own_name(one):
    loaded = load_recipe(one.name)
    assert loaded.recipe == load_recipe(one.path).recipe
    assert loaded.name == one.name.replace("/", "-")
    assert loaded.recipe.data.store.startswith("prepared/")


def test_it_names_the_schema_and_says_what_it_needs_and_how_to_run_it(one):
    lines = one.path.read_text(encoding="utf-8").splitlines()
    schema = lines[0].removeprefix("# yaml-language-server: $schema=")
    assert (one.path.parent / schema).resolve() == recipes_folder() / "schema.json"
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "tats prepare" in header or "tats demo" in header
    assert f"tats pretrain {one.name}" in header or "tats demo" in header
    assert one.summary


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_recipe_has_a_comment(name):
    for line in load_recipe(name).source.read_text(encoding="utf-8").splitlines():
        # Plain keys speak for themselves where the section says it: kind, split and the store.
        if re.match(r" +\w+: \S", line) and not re.match(r" +(kind|split): ", line):
            assert " # " in line, line


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_takes_frames_pixels_and_rates_as_videomaes_code(name):
    recipe = load_recipe(name).recipe
    tune = recipe.finetune
    assert (tune.sampling or recipe.data.sampling).indices == "videomae"
    assert recipe.data.sampling.indices == recipe.data.resize == "videomae"
    augment = tune.augment
    assert augment.rand_augment_form == "videomae"
    assert (augment.rand_augment, augment.rand_augment_ops, augment.erasing) == (7, 4, 0.25)
    assert (recipe.optim.warmup_lr, tune.optim.warmup_lr, tune.optim.warmup_epochs) == (0, 0, 5)


@pytest.mark.parametrize("name", [one for one in VIDEOMAES if "/" in one])
def test_recipes_of_a_data_set_are_fine_tuned_and_tested_alike(name):
    recipe, other = load_recipe(name).recipe, load_recipe(name.split("/")[1]).recipe
    assert (recipe.finetune, recipe.evaluate) == (other.finetune, other.evaluate)


def test_hmdb51_has_the_schedule_of_everest_and_says_what_is_ours():
    """scripts/hmdb51 of sunilhoho/EVEREST, whose fine-tuning has neither mixup nor repeats."""
    for name in (one for one in VIDEOMAES if one.endswith("hmdb51")):
        recipe, text = load_recipe(name).recipe, load_recipe(name).source.read_text("utf-8")
        tune = recipe.finetune.optim
        assert (tune.epochs, tune.total_batch, tune.base_lr) == (50, 128, 1e-3)
        assert (recipe.evaluate.segments, recipe.data.sampling.stride) == (10, 2)
        for key in ("repeats", "drop_path", "head_dropout", "mixup", "cutmix", "layer_decay"):
            (line,) = re.findall(rf"^ +{key}: .*\(ours.*EVEREST: .*$", text, re.MULTILINE)
            assert line


@pytest.mark.parametrize(
    ("name", "epochs", "total", "peak", "warmup", "clip", "save", "grid"),
    [
        ("videomae2/base", 200, 32 * 32, 4e-3, 20, None, 20, (8, 14, 14)),
        ("videomae2/giant", 300, 64 * 32, 4.8e-3, 30, 0.02, 5, (8, 16, 16)),
    ],
)
def test_the_settings_of_videomae_v2(name, epochs, total, peak, warmup, clip, save, grid):
    """scripts/pretrain of OpenGVLab/VideoMAEv2, whose rate does not count the four views."""
    recipe = load_recipe(name).recipe
    optim = recipe.optim
    assert (optim.epochs, optim.total_batch, optim.batch_per_device) == (epochs, total, 32)
    assert optim.base_lr * optim.total_batch / 256 == pytest.approx(peak)
    assert (optim.warmup_epochs, optim.clip_grad, recipe.run.save_every) == (warmup, clip, save)
    assert (optim.betas, optim.weight_decay, recipe.data.repeats) == ((0.9, 0.95), 0.05, 4)
    assert (recipe.grid, recipe.data.sampling.stride) == (grid, 4)
    assert (recipe.mask.kind, recipe.mask.ratio, recipe.predict.kind) == (
        "tube",
        0.9,
        "running_cell",
    )
    assert recipe.head.depth == 4
    if name.endswith("giant"):
        assert (recipe.head.width, recipe.head.heads, recipe.head.mlp) == (
            512,
            8,
            512 * 48 // 11,
        )
        assert recipe.model.checkpointing


def leaves(value, keys=()):
    if not isinstance(value, dict):
        return {".".join(keys): value}
    found = {}
    for key, below in value.items():
        found |= leaves(below, (*keys, key))
    return found


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "k400-1600",
            {"optim.epochs": 1600, "finetune.optim.epochs": 75, "finetune.optim.base_lr": 5e-4}
            | {"finetune.optim.total_batch": 384, "finetune.optim.batch_per_device": 6},
        ),
        (
            "k400-small",
            {"model.size": "small", "optim.epochs": 1600, "optim.total_batch": 1024}
            | {"finetune.optim.epochs": 150, "finetune.optim.base_lr": 5e-4}
            | {"finetune.optim.total_batch": 384, "finetune.optim.batch_per_device": 12},
        ),
        (
            "k400-large",
            {"model.size": "large", "head.depth": 12, "optim.epochs": 1600}
            | {"optim.total_batch": 512, "optim.batch_per_device": 8}
            | {"finetune.optim.epochs": 35, "finetune.optim.base_lr": 2e-3}
            | {"finetune.optim.total_batch": 128, "finetune.optim.batch_per_device": 2},
        ),
        (
            "k400-huge",
            {"model.size": "huge", "head.depth": 12, "model.checkpointing": True}
            | {"optim.epochs": 1600, "optim.total_batch": 1024, "optim.batch_per_device": 16}
            | {"finetune.optim.epochs": 50, "finetune.optim.min_lr": 1e-5}
            | {"finetune.drop_path": 0.2, "finetune.head_dropout": 0.5},
        ),
        (
            "ssv2-2400",
            {"optim.epochs": 2400, "finetune.optim.epochs": 30}
            | {"finetune.optim.total_batch": 384, "finetune.optim.batch_per_device": 6},
        ),
        (
            "ssv2-small",
            {"model.size": "small", "optim.epochs": 2400, "optim.total_batch": 1024}
            | {"finetune.optim.epochs": 40, "finetune.optim.base_lr": 1e-3}
            | {"finetune.optim.total_batch": 384, "finetune.optim.batch_per_device": 12}
            | {"finetune.optim.layer_decay": 0.7},
        ),
    ],
)
def test_variants_differ_from_the_baseline_by_what_their_scripts_say(name, changes):
    """The scripts of MCG-NJU/VideoMAE, read one by one; all of them repeat each video twice."""
    base, variant = (
        leaves(load_recipe(f"videomae/{one}").recipe.model_dump(mode="json"))
        for one in (name.split("-")[0], name)
    )
    found = {key: value for key, value in variant.items() if value != base[key]}
    assert found == changes | {"finetune.repeats": 2}
    assert variant.keys() == base.keys()


def test_the_numbers_of_the_published_settings():
    """Against the tables of VideoMAE's, AdaMAE's and EVEREST's scripts, and TATS's 200 epochs."""
    found = {}
    for name in DATA_SETS:
        recipe = load_recipe(name).recipe
        optim, tune, test = recipe.optim, recipe.finetune, recipe.evaluate
        found[name] = {
            "pretrain": (optim.epochs, optim.total_batch, recipe.data.sampling.stride),
            "peak": round(optim.base_lr * optim.total_batch / 256, 9),
            "finetune": (tune.optim.epochs, tune.optim.total_batch, tune.repeats),
            "tune_lr": tune.optim.base_lr,
            "regularisation": (tune.optim.layer_decay, tune.drop_path, tune.head_dropout),
            "views": (test.segments, test.crops),
            "flip": (recipe.data.flip, tune.augment.flip),
        }
        assert recipe.grid == (8, 14, 14)
        assert (recipe.model.size, recipe.head.depth) == ("base", 4)
    assert found == {
        "ssv2": {
            "pretrain": (800, 2048, 2),
            "peak": 1.2e-3,
            "finetune": (50, 512, 1),
            "tune_lr": 5e-4,
            "regularisation": (0.75, 0.1, 0.0),
            "views": (2, 3),
            "flip": (0, 0),
        },
        "k400": {
            "pretrain": (800, 2048, 4),
            "peak": 1.2e-3,
            "finetune": (100, 512, 1),
            "tune_lr": 1e-3,
            "regularisation": (0.75, 0.1, 0.0),
            "views": (5, 3),
            "flip": (0, 0.5),
        },
        "ucf101": {
            "pretrain": (200, 192, 4),
            "peak": 2.25e-4,
            "finetune": (100, 128, 2),
            "tune_lr": 5e-4,
            "regularisation": (0.7, 0.2, 0.5),
            "views": (5, 3),
            "flip": (0, 0.5),
        },
        "hmdb51": {
            "pretrain": (4800, 192, 2),
            "peak": 7.5e-4,
            "finetune": (50, 128, 2),
            "tune_lr": 1e-3,
            "regularisation": (0.7, 0.2, 0.5),
            "views": (10, 3),
            "flip": (0, 0.5),
        },
    }


@pytest.mark.parametrize("name", MGM)
def test_a_recipe_of_mgm_is_that_of_tats_but_for_the_mask(name):
    """So that runs of both compare masks; on UCF101 TATS names its 200 epochs, MGM none."""
    recipe = load_recipe(name).recipe
    other = load_recipe(name.removeprefix("mgm/")).recipe
    assert recipe.mask.kind == "mgm"
    assert recipe.mask.ratio == 0.75
    changes = {"mask": other.mask}
    if name == "mgm/ucf101":
        assert (recipe.optim.epochs, recipe.run.save_every) == (3200, 100)
        changes["optim"] = recipe.optim.model_copy(update={"epochs": other.optim.epochs})
        changes["run"] = other.run
    assert recipe.model_copy(update=changes) == other


@pytest.mark.parametrize(
    ("name", "epochs", "base_lr", "stride"),
    [
        ("mgm/ssv2", 800, 1.5e-4, 2),
        ("mgm/k400", 800, 1.5e-4, 4),
        ("mgm/ucf101", 3200, 3e-4, 4),
        ("mgm/hmdb51", 4800, 1e-3, 2),
    ],
)
def test_the_settings_of_mgm(name, epochs, base_lr, stride):
    recipe = load_recipe(name).recipe
    optim, data = recipe.optim, recipe.data
    assert (optim.epochs, optim.base_lr, data.sampling.stride) == (epochs, base_lr, stride)
    assert (optim.betas, optim.weight_decay, optim.warmup_epochs) == ((0.9, 0.95), 0.05, 40)
    assert (data.frames, recipe.grid) == (16, (8, 14, 14))
    assert (data.motion.source, data.motion.camera, data.motion.path) == ("codec", "none", None)


@pytest.mark.parametrize(
    ("name", "tokens", "visible"), [("mgm/ssv2", 1568, 392), ("mgm/small", 392, 104)]
)
def test_a_dry_run_of_mgm_counts_whole_sites_of_every_slice(
    cli, tmp_path, monkeypatch, name, tokens, visible
):
    """8 x (196 - 147) and 8 x (49 - 36) are shown: int(0.75 x sites) of every slice are hidden."""
    monkeypatch.chdir(tmp_path)
    plan = cli("pretrain", name, "--dry-run", "--json").json()
    assert (plan["tokens"], plan["visible"], plan["predicted"]) == (
        tokens,
        visible,
        tokens - visible,
    )
    assert plan["run"] == f"runs/{name.replace('/', '-')}"


def test_the_schema_is_current():
    written = (recipes_folder() / "schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(schema_text()), "run `make schema`"


def test_every_key_of_the_schema_is_described():
    for name, section in json.loads(schema_text())["$defs"].items():
        for key, field in section["properties"].items():
            described = key == "kind" or "description" in field or "$ref" in field
            assert described, f"{name}.{key}"


def test_the_page_about_recipes_names_every_section_and_recipe():
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text("utf-8")
    for name in [*Recipe.model_fields, *(one.name for one in RECIPES)]:
        assert f"| `{name}` |" in page


def test_only_files_of_the_package_have_a_shipped_name(tmp_path):
    assert shipped_name(recipes_folder() / "mgm" / "ssv2.yaml") == "mgm/ssv2"
    assert shipped_name(tmp_path / "ssv2.yaml") is None


LVMAE = ["diving48", "epic100", "k710", "ssv2"]


@pytest.mark.parametrize("name", LVMAE)
def test_lvmae_recipes_are_what_its_paper_tells(name):
    """The text of arXiv 2411.13683; its tables of hyper-parameters could not be read."""
    recipe = load_recipe(f"lvmae/{name}").recipe
    assert (recipe.mask.kind, recipe.mask.ratio) == ("tube", 0.9)
    assert (recipe.predict.kind, round(recipe.predict.random, 3)) == ("tokenizer", 0.333)
    assert recipe.predict.budget is None  # 15 %
    assert [(one.kind, one.loss) for one in recipe.targets] == [("latents", "mse")]
    assert recipe.resolved_predict.tokenizer.path == "runs/lvmae-tokenizer"
    assert (recipe.model.size, recipe.head.kind, recipe.head.depth) == ("base", "decoder", 4)
    frames = 64 if name == "ssv2" else 128
    assert recipe.grid == (frames // 2, 14, 14)
    assert recipe.optim.epochs == (800 if name == "k710" else 1600)
    if name != "k710":
        drop = recipe.finetune.drop
        assert (drop and (drop.kind, drop.ratio)) == (("tube", 0.2) if frames == 128 else None)
        assert (recipe.evaluate.segments, recipe.evaluate.crops) == (1, 1)
        assert recipe.finetune.val_split is None


def test_the_adaptive_tokenizer_is_of_the_published_shape():
    recipe = load_recipe("lvmae/tokenizer").recipe
    config = recipe.tokenizer
    assert (recipe.data.frames, recipe.data.view_size) == (16, (224, 224))
    assert (config.kind, config.tubelet, config.stride, config.keep) == ("adaptive", 2, 16, 768)
    assert math.prod(config.levels) == 2**18
    assert (recipe.optim.betas, config.ema) == ((0.0, 0.99), 0.999)
    published = ["tokenizer.patch=1", "tokenizer.widths=[64,128,128,256,256]", "tokenizer.blocks=2"]
    assert load_recipe("lvmae/tokenizer", published).recipe.tokenizer.patch == 1
