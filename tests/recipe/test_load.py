"""Recipes from files and names, and what is said about wrong ones."""

from pathlib import Path

import pytest

from tatscli.errors import Exit, RecipeError
from tatscli.recipe.keys import node_of, unknown
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Data, Mask
from tests.recipe.kinds import listed

MINIMAL = "data: {store: prepared/x}\nmask: {kind: tube}\n"
MASKS = listed(Mask)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path: Path, *overrides: str) -> list[str]:
    """The list of problems in the error that loading raises."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [line[4:] for line in caught.value.message.splitlines()[1:]]


def test_a_file_gives_recipe_name_and_source(write):
    path = write(MINIMAL)
    loaded = load_recipe(path)
    assert (loaded.name, loaded.source) == ("mine", path)
    assert loaded.recipe.data.store == "prepared/x"
    assert loaded.merged == {"data": {"store": "prepared/x"}, "mask": {"kind": "tube"}}


def test_a_shipped_name_needs_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("ucf101")
    assert loaded.name == "ucf101"
    assert loaded.recipe.mask.kind == "tats"


def test_a_missing_recipe_names_the_shipped_ones_and_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("ufc101")
    assert caught.value.exit_code == Exit.USAGE
    assert "did you mean `ucf101`?" in caught.value.hint
    assert "`ssv2`" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/ssv2.yaml")  # as a checkout would have it
    assert "did you mean `ssv2`?" in caught.value.hint


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)


def test_floats_without_a_point_are_numbers(write):
    path = write(MINIMAL + "optim: {base_lr: 1e-4, min_lr: 1E-6, eps: 2e-08}\n")
    optim = load_recipe(path, ["optim.warmup_lr=5e-7"]).recipe.optim
    assert (optim.base_lr, optim.min_lr, optim.eps, optim.warmup_lr) == (1e-4, 1e-6, 2e-8, 5e-7)


def test_naming_one_key_of_the_finetuning_optimiser_keeps_its_other_defaults(write):
    recipe = load_recipe(write(MINIMAL + "finetune: {optim: {epochs: 3}}\n")).recipe
    assert recipe.finetune.optim.epochs == 3
    assert recipe.finetune.optim.layer_decay == 0.75
    assert recipe.finetune.optim.total_batch == 512


def test_all_problems_come_at_once_with_path_line_and_nearest_key(write):
    path = write(
        "data: {store: 3}\n"
        "mask:\n"
        "  kind: tats\n"
        "  widht: 4\n"
        "  ratio: 1.5\n"
        "optim: {epochs: 2.5, lr: 1e-4}\n"
        "modle: {size: base}\n"
    )
    assert problems_of(path, "evaluate.crops=2", "optim.epchs=3", "mask.heads=many") == [
        "line 1: `data.store: 3` must be text; put quotes around it",
        "line 4: `mask.widht` is unknown; did you mean `mask.width`?",
        "line 5: `mask.ratio: 1.5` must be less than 1",
        "line 6: `optim.epochs: 2.5` must be a whole number",
        "line 6: `optim.lr` is unknown; "
        "did you mean `optim.base_lr` or `optim.min_lr` or `optim.warmup_lr`?",
        "line 7: `modle` is unknown; did you mean `model`?",
        "`optim.epchs` is unknown; did you mean `optim.epochs`?",
        '`mask.heads: "many"` must be a whole number',
        "`evaluate.crops: 2` must be one of `1`, `3`",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data: {store: x}\nmask: {kind: tatz}\n",
            f'line 2: `mask.kind: "tatz"` must be one of {MASKS}; did you mean `tats`?',
        ),
        (
            "data: {store: x}\nmask: {ratio: 0.5}\n",
            f"line 2: `mask.kind` is missing; it must be one of {MASKS}",
        ),
        ("data: {store: x}\n", "`mask` is missing"),
        (
            "data: {frames: 16}\nmask: {kind: tube}\n",
            "line 1: `data.store` is missing: Folder written by `tats prepare`",
        ),
        (MINIMAL + "targets: []\n", "line 3: `targets: []` must be a list of at least 1"),
        (
            MINIMAL + "targets:\n  - kind: pixels\n    weigth: 2\n",
            "line 5: `targets.0.weigth` is unknown; did you mean `targets.0.weight`?",
        ),
        (MINIMAL + "run: fast\n", 'line 3: `run: "fast"` must be a section with keys'),
        (MINIMAL + "run: {compile: 1}\n", "line 3: `run.compile: 1` must be `true` or `false`"),
        (
            MINIMAL + "optim: {epochs: yes}\n",
            'line 3: `optim.epochs: "yes"` must be a whole number',
        ),
        (MINIMAL + "optim: {eps: .nan}\n", "line 3: `optim.eps: NaN` must be a finite number"),
        (MINIMAL + "optim: {betas: [0.9]}\n", "line 3: `optim.betas: [0.9]` has too few items"),
        (
            "data: {store: x, workers: -1}\nmask: {kind: tube}\n",
            "line 1: `data.workers: -1` must be at least 0 or `auto`",
        ),
        (
            "data: {store: x, size: 100}\nmask: {kind: tube}\n",
            "`data.size: 100` is not a multiple of `model.patch: 16`",
        ),
        (
            "data: {store: x, size: [96, 100]}\nmask: {kind: tube}\n",
            "the width of `data.size: [96, 100]` is not a multiple of `model.patch: 16`",
        ),
        (
            "data: {store: x, size: [90, 160]}\nmask: {kind: tube}\n",
            "the height of `data.size: [90, 160]` is not a multiple of `model.patch: 16`",
        ),
        (
            "data:\n  store: x\n  sampling: {mode: uniform, stride: 2}\nmask: {kind: tube}\n",
            "line 3: `data.sampling`: `mode: uniform` takes no `stride`: it covers the whole video",
        ),
        (
            MINIMAL + "ratio: 0.5\n",
            "line 3: `ratio` is unknown; did you mean `mask.ratio`?",
        ),
        (
            MINIMAL + "optim:\n  epochs: 3\n  eps: 1e-8\n  epochs: 4\n",
            "line 6: `optim.epochs` is given twice, first on line 4",
        ),
    ],
)
def test_one_problem_in_words(write, text, expected):
    assert problems_of(write(text)) == [expected]


@pytest.mark.parametrize(
    "size",
    [
        '"big"',
        '"224"',
        "-16",
        "0",
        "2.5",
        "null",
        "true",
        "[]",
        "[96]",
        "[96, 160, 3]",
        "[96, -16]",
        "[96, 16.5]",
        '["96", 160]',
        '{"height": 96}',
    ],
)
def test_a_size_that_is_neither_one_number_nor_two_is_one_problem(write, size):
    wanted = "must be a whole number of at least 1, or two: [height, width]"
    text = f"data:\n  store: x\n  size: {size}\nmask: {{kind: tube}}\n"
    assert problems_of(write(text)) == [f"line 3: `data.size: {size}` {wanted}"]
    assert problems_of(write(MINIMAL), f"data.size={size}") == [f"`data.size: {size}` {wanted}"]


def test_a_view_has_one_side_or_height_and_width(write):
    def data(*overrides: str) -> Data:
        return load_recipe(write(MINIMAL), overrides).recipe.data

    assert (data().size, data().view_size) == (224, (224, 224))
    assert (data("data.size=112").size, data("data.size=112").view_size) == (112, (112, 112))
    oblong = load_recipe(write(MINIMAL), ["data.size=[96,160]"]).recipe
    assert (oblong.data.view_size, oblong.grid) == ((96, 160), (8, 6, 10))
    assert data("data.size=[96,160]", "data.size.0=128").view_size == (128, 160)
    # Runs of either spelling are one another's: they are written alike.
    assert data("data.size=[224, 224]") == data()
    assert data("data.size=[112,112]").model_dump(mode="json")["size"] == 112
    assert oblong.data.model_dump(mode="json")["size"] == [96, 160]


PREDICT_RULES = "`random`, `uniform`, `running_cell`, `flow`, `everest` or `tokenizer`"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("{kind: block, pull: 1}", "`mask.pull` belongs to `kind: mgm`, and this is `block`"),
        (
            "{kind: tube, share: 1}",
            "`mask.share` belongs to `kind: motion_bins`, and this is `tube`",
        ),
        (
            "{kind: random, noise: 0}",
            "`mask.noise` belongs to `kind: block`, `simulated` or `mgm`, and this is `random`",
        ),
        ("{kind: block, nois: 1}", "`mask.nois` is unknown; did you mean `mask.noise`?"),
        ("{kind: tube, colour: 1}", "`mask.colour` is unknown; its section has `kind`, `ratio`"),
    ],
)
def test_a_key_of_another_kind_says_whose_it_is(write, mask, expected):
    path = write(f"data: {{store: x}}\nmask: {mask}\n")
    assert problems_of(path) == [f"line 2: {expected}"]


def test_no_key_is_its_own_correction(write):
    """Whatever key of whatever kind lands in a section of another: the file or an override."""
    sentence = f"`predict.budget` belongs to `kind: {PREDICT_RULES[1:]}, and this is `all`"
    assert problems_of(write(MINIMAL), "predict.budget=3") == [sentence]
    assert problems_of(write(MINIMAL + "predict: {kind: all, budget: 3}\n")) == [
        f"line 3: {sentence}"
    ]
    kinds = node_of(Mask).by_name
    for section in kinds.values():
        for wrong in {field for other in kinds.values() for field in other.model_fields}:
            if wrong not in section.model_fields:
                assert unknown(section, ("mask",), wrong).count(f"`mask.{wrong}`") == 1


def hint_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.hint


WHOLE = "`tats recipes show ucf101 --merged` shows a whole recipe, defaults included"
BLOCK = "`mask` of `kind: block` has `kind`, `ratio`, `blocks`, `aspect`, `noise`"


def test_the_hint_lists_the_keys_of_the_kind_that_is_wrong(write):
    """They are in no recipe of another kind, so showing one would not help."""
    block = write("data: {store: x}\nmask: {kind: block, nois: 1, ratio: 2}\n")
    assert hint_of(block) == BLOCK  # two problems, said once
    assert hint_of(block, "optim.epochs=0") == f"{BLOCK}; {WHOLE}"
    assert hint_of(write(MINIMAL), "predict.kind=random", "predict.budgets=3") == (
        "`predict` of `kind: random` has `kind`, `budget`"
    )
    assert hint_of(write(MINIMAL), "predict.budget=3") == "`predict` of `kind: all` has `kind`"
    rectangles = "{kind: mgm, centre: centroid, blocks: 2}"
    assert "`centre`" in hint_of(write(f"data: {{store: x}}\nmask: {rectangles}\n"))
    pixels = "targets: [{kind: pixels}, {kind: pixels, norm: 3}]\n"
    assert hint_of(write(MINIMAL + pixels)).startswith("`targets.1` of `kind: pixels` has `kind`,")


@pytest.mark.parametrize(
    ("text", "override"),
    [
        (MINIMAL, "optim.epochs=0"),
        (MINIMAL, "optim"),
        ("data: {store: x}\nmask: {kind: tubes}\n", ""),
        ("data: {store: x}\nmask: 3\n", ""),
        ("data: {store: x}\n", ""),
    ],
)
def test_elsewhere_the_hint_shows_a_recipe(write, text, override):
    assert hint_of(write(text), *filter(None, [override])) == WHOLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- data\n- mask\n", "is not a mapping of sections"),
        ("data: {store: x\nmask: 3\n", "is not valid YAML on line 2"),
        ("data:\n\tstore: x\n", "is not valid YAML on line 2, column 1"),
        ("data: &a\n  store: *a\n", "an alias that contains itself"),
        ("data: !!python/object:os.system {}\n", "is not valid YAML on line 1"),
    ],
)
def test_text_that_is_no_recipe(write, text, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    assert expected in caught.value.message


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0100", 100), ("08", 8), ("1_000", 1000), ("+7", 7), ("0010", 10)],
)
def test_whole_numbers_are_decimal(write, text, value):
    """YAML 1.1 takes `0100` as 64."""
    path = write(MINIMAL + f"optim: {{epochs: {text}}}\n")
    assert load_recipe(path).recipe.optim.epochs == value
    assert load_recipe(write(MINIMAL), [f"optim.epochs={text}"]).recipe.optim.epochs == value


@pytest.mark.parametrize("text", ["1:30", "0x10", "0b11", "0o17", "on", "no", "yes", "off", "1e5a"])
def test_what_is_no_decimal_number_is_text(write, text):
    """YAML 1.1 takes `1:30` as 90, and `on` as true."""
    for key, wanted in (
        ("optim.epochs", "a whole number"),
        ("optim.base_lr", "a number"),
        ("run.compile", "`true` or `false`"),
    ):
        section, name = key.split(".")
        sentence = f'`{key}: "{text}"` must be {wanted}'
        assert problems_of(write(MINIMAL + f"{section}: {{{name}: {text}}}\n")) == [
            f"line 3: {sentence}"
        ]
        assert problems_of(write(MINIMAL), f"{key}={text}") == [sentence]
    for name in (text, "2024-1-1"):  # and where text is wanted it is that text
        assert load_recipe(write(MINIMAL), [f"data.split={name}"]).recipe.data.split == name


def test_none_is_null_where_null_is_allowed(write):
    path = write(MINIMAL + "finetune: {val_split: none, optim: {clip_grad: None}}\n")
    loaded = load_recipe(path, ["run.out=None", "run.watch=none", "mask.kind=random"])
    assert loaded.recipe.finetune.val_split is None
    assert loaded.recipe.finetune.optim.clip_grad is None
    assert (loaded.recipe.run.out, loaded.recipe.run.watch) == (None, None)
    assert "`finetune.val_split: none` is read as null" in loaded.notes
    # Where `none` is a choice, or null is not allowed, it stays what it is.
    loaded = load_recipe(write(MINIMAL), ["finetune.freeze=none", "data.store=none"])
    assert (loaded.recipe.finetune.freeze, loaded.recipe.data.store) == ("none", "none")
    assert loaded.notes == ()
    assert problems_of(write(MINIMAL), "optim.epochs=none") == [
        '`optim.epochs: "none"` must be a whole number'
    ]
