"""Every command that README, docs and `--help` show is run, shrunk to seconds.

Inputs that the text takes for granted are put there: `videos`, `clip.mp4`, lists, and any
`prepared/...` or `runs/...` that no earlier command of the same page has made.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tatscli.cli import COMMANDS
from tests.clips import pan, render
from tests.test_cli import surface
from tests.weights.models import official, save_official

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOVES = {"left": (-2, 0), "right": (2, 0)}
PLACEHOLDER = re.compile(r"\b(COMMAND|RECIPE|RUN|CLIP|SRC|STORE|FILE)\b")

SMALL = [
    "model.size=nano",
    "model.patch=8",
    "data.size=32",
    "data.frames=4",
    "data.workers=0",
    "data.split=null",
    "optim.total_batch=2",
    "optim.batch_per_device=2",
    "finetune.optim.total_batch=2",
    "finetune.optim.batch_per_device=2",
    "finetune.split=train",
    "run.device=cpu",
]
MASKED = [*SMALL, "mask.ratio=0.75"]

LONG_PAGES = {"bench", "export", "memory", "report", "visualize"}
LONG_HELP = {"bench", "prepare", "report"}
"""Ten to twenty seconds each, of a command that has tests of its own: left to `make test-all`."""

OTHERS_FILES = ("--tokenizer vqvae", "encode prepared/videos --recipe my.yaml")
"""Examples about files of the reader's own; `tests/tokenizer` and `tests/store` have such files."""


def commands_of_page(page: Path) -> list[str]:
    """Lines of fenced blocks that begin with `tats`, `$ tats` or `torchrun`, without comments."""
    found, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced and re.match(r"(\$ )?(tats|torchrun) ", line):
            found.append(line.removeprefix("$ "))
    return [line for line in found if not PLACEHOLDER.search(line)]


def commands_of_help(name: str, cli: Callable[..., Any]) -> list[str]:
    """The examples of a command, and of the commands below it, each once."""
    found: dict[str, None] = {}
    for words in (one.split()[1:] for one in surface() if one.split()[1:2] == [name]):
        text = cli(*words, "--help").stdout
        examples = text[text.index("Examples:") :].splitlines()
        found |= {line.strip(): None for line in examples if re.match(r" +(tats|torchrun) ", line)}
    return list(found)


def words_of(line: str) -> list[str]:
    """The arguments of `tats` in a line, whether started plainly or by torchrun."""
    words = shlex.split(line, comments=True)
    start = words.index("tatscli") if words[0] == "torchrun" else 0
    words = words[start + 1 :]
    if "--nproc" in words:  # has tests of its own, and costs a start for each process
        place = words.index("--nproc")
        words = words[:place] + words[place + 2 :]
    return words[: words.index(">")] if ">" in words else words


class Workshop:
    """A folder with what a reader of the docs would have, and `tats` to run in it."""

    looked: ClassVar[set[str]] = set()
    """Lines that have shown something: where a page repeats one, nothing goes on from it."""

    def __init__(self, folder: Path, base: Path, cli: Callable[..., Any]) -> None:
        self.folder = folder
        self.base = base
        self.cli = cli

    def run(self, line: str) -> Any:
        """Run a line of documentation, shrunk; the inputs it names are made first."""
        if line in self.looked:
            return None
        shown = ("visualize-masks", "motion", "predict", "export")
        if line.startswith(tuple(f"tats {name} " for name in shown)) or "--dry-run" in line:
            self.looked.add(line)
        words = words_of(line.replace(" --engine ray --address auto", ""))  # tested with a cluster
        command = words[0]
        written = words[words.index("--out") + 1] if command == "convert" else None
        for word in words[1:] if command != "prepare" else []:
            if word != written:
                self.provide(word)
        if written is not None and "--overwrite" not in words:
            words.append("--overwrite")  # of a page before, or made for one
        if command == "runs":
            self.provide("runs/small-finetune")
        if command in ("pretrain", "finetune"):
            self.train(words)
            return None
        if command == "evaluate":
            words += ["evaluate.split=val", "finetune.split=train", "data.workers=0"]
            words += ["evaluate.probe.epochs=1"]
            words = [word for word in words if word not in ("--split", "test")]
        if command == "prepare" and "--check" not in words:
            words.append("--overwrite")  # the examples of a page are alternatives
        if command == "prepare" and "--workers" not in words:
            words += ["--workers", "1"]  # a second one starts for nothing
        if command == "replay":
            self.spoil(words[1])
            outcome = self.cli(*words, "-q")
            assert outcome.code == 1, f"{words}\n{outcome.stderr}"  # it is still bad
            return outcome
        if command == "bench":  # the search for the largest batch has tests of its own
            words += [*MASKED, "--batch", "2", "--seconds", "0.1"]
        if command == "embed":
            words.append("--overwrite")
        if command == "visualize-masks" and "--windows" not in words:
            words += ["--windows", "1"]
        return self.must(words)

    def must(self, words: list[str]) -> Any:
        outcome = self.cli(*words)
        assert outcome.code == 0, f"{words}\n{outcome.stderr}"
        return outcome

    def spoil(self, run: str) -> None:
        """Let the training of a run end in a bad step."""
        self.provide("prepared/given")
        kind = ["finetune", "small", "--scratch"] if "finetune" in run else ["pretrain", "small"]
        wild = ["optim.base_lr=1e30", "finetune.optim.base_lr=1e30", "run.max_bad_steps=1"]
        given = [*MASKED, *wild, "--store", "prepared/given", "--out", run, "--overwrite", "-q"]
        outcome = self.cli(*kind, *given)
        assert outcome.code == 1 and "tats replay" in outcome.stderr, outcome.stderr

    def train(self, words: list[str]) -> None:
        """Run a training for two steps; `--resume` after a first one, unless it names our run."""
        if "--dry-run" in words:  # what a step is made of is counted for each clip of its batch
            self.must([*words, "optim.batch_per_device=1", "finetune.optim.batch_per_device=1"])
            return
        if words[0] == "finetune" and not {"--init", "--scratch"} & set(words):
            self.provide(words[1] if words[1].startswith("runs/") else f"runs/{words[1]}")
        if words[0] == "pretrain" and words[1].startswith("runs/"):
            self.must([*words, "--max-steps", "2"])
            return
        if "--store" not in words:
            self.provide("prepared/given")
            words = [*words, "--store", "prepared/given"]
        if words[1].startswith("mam2"):
            self.provide(f"runs/tokenizer-{'small' if words[1].endswith('small') else 'vq'}")
        small = MASKED
        if words[1].startswith("tokenizer"):
            small = SMALL
        elif words[1].startswith("lvmae/tokenizer"):
            small = [*SMALL, "tokenizer.keep=2"]
        elif words[1].startswith("lvmae"):
            self.provide(f"runs/lvmae-tokenizer{'-small' if words[1].endswith('small') else ''}")
        anew = [word for word in words if word not in ("--resume", "auto")]
        fresh = [*anew, *small, "--overwrite"]
        self.must([*fresh, "--max-steps", "1"])
        if "--resume" in words:
            self.must([*words, *small, "--max-steps", "2"])

    def provide(self, word: str) -> None:
        """Make the store, run or exported file that a word names, if it is not there."""
        path = Path(word.split("=")[-1])
        if path.parts[:1] == ("runs",) and path.suffix != ".onnx":
            path = Path(*path.parts[:2])
        if path.is_absolute() or path.exists() or path == Path("runs"):
            return
        if path.suffix == ".onnx" and path.parts[:1] == ("runs",):
            self.provide(str(path.parent))
            self.must(["export", str(path.parent), "--out", str(path), "-q"])
            return
        if path.parts[:1] == ("prepared",):
            shutil.copytree(self.base / "prepared" / "videos", path)
        if path.parts[:1] == ("runs",):
            kind = "finetuned" if path.name.endswith("-finetune") else "pretrained"
            kind = "tokenizer" if path.name.startswith("tokenizer") else kind
            kind = "adaptive" if path.name.startswith("lvmae-tokenizer") else kind
            shutil.copytree(self.base / "runs" / kind, path, symlinks=True)
            if path.name.startswith("seed"):
                self.change_seed(path, int(path.name[4]))
        if path.parts[:1] in (("downloads",), ("hub",)):
            self.download(path)
        if path.name == "label_710to400.json":
            path.write_text(json.dumps(list(range(709, 309, -1))))
            names = [f"class {number}" for number in range(400)]
            Path("labels.txt").write_text("\n".join(names))

    def download(self, path: Path) -> None:
        """Make weights of others: a folder of transformers, or a file told by its name."""
        path.parent.mkdir(exist_ok=True)
        if not path.suffix:
            kind = "pretrained" if path.name == "videomae-base" else "finetuned"
            self.must(["convert", str(self.base / "runs" / kind), "--to", "hf", "--out", str(path)])
        elif path.name.startswith("mae"):
            tensors = official("pretrained", width=768, depth=1, mlp=64)
            picture = tensors["encoder.patch_embed.proj.weight"].mean(dim=2)
            named = {"encoder.patch_embed.proj.weight": picture}
            encoder = {name: one for name, one in (tensors | named).items() if "encoder." in name}
            named = {name.removeprefix("encoder."): one for name, one in encoder.items()}
            save_official(path, {name: one for name, one in named.items() if "decoder" not in name})
        elif "k710" in path.name:
            save_official(path, official("finetuned", width=384, depth=1, mlp=64, classes=710))
        else:
            save_official(path, official("pretrained"))

    def change_seed(self, run: Path, seed: int) -> None:
        """Let the results of a run be those of another seed."""
        for path in (run / "results").glob("*.json"):
            result = json.loads(path.read_text())
            result["recipe"]["run"]["seed"] = seed
            path.write_text(json.dumps(result))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, lists, a clip, a store and three runs."""
    from tatscli.cli import main

    folder = tmp_path_factory.mktemp("base")
    for split, count in (("train", 2), ("val", 1)):
        for label, (name, step) in enumerate(MOVES.items()):
            for number in range(count):
                seed = 10 * label + number + (50 if split == "val" else 0)
                path = folder / "videos" / split / name / f"{number}.mp4"
                render(path, pan(step, frames=12, height=48, width=64, seed=seed))
    render(folder / "clip.mp4", pan((2, 1), frames=20, height=64, width=96))
    for split in ("train", "val"):
        lines = [
            f"{path.relative_to(folder / 'videos')} {list(MOVES).index(path.parent.name)}\n"
            for path in sorted((folder / "videos" / split).rglob("*.mp4"))
        ]
        (folder / f"{split}.csv").write_text("".join(lines))
    store, runs = folder / "prepared" / "videos", folder / "runs"
    given = ["-q", "--store", store]
    shared = [*MASKED, *given]
    lines = [
        ["prepare", folder / "videos", "--out", store, "--workers", "1", "-q"],
        ["pretrain", "small", *shared, "--max-steps", "1", "--out", runs / "pretrained"],
        ["finetune", "small", *shared, "--max-steps", "2", "--init", runs / "pretrained",
         "--out", runs / "finetuned"],
        ["evaluate", runs / "finetuned", "-q", "evaluate.split=val"],
        ["pretrain", "tokenizer/small", *SMALL, *given, "--max-steps", "1",
         "--out", runs / "tokenizer"],
        ["pretrain", "lvmae/tokenizer-small", *SMALL, "tokenizer.keep=2", *given, "--max-steps",
         "1", "--out", runs / "adaptive"],
    ]  # fmt: skip
    for line in lines:
        assert main([str(word) for word in line]) == 0
    return folder


def like_ssv2(videos: Path) -> None:
    """Two videos in the form of Something-Something V2."""
    labels = Path("ssv2/labels")
    labels.mkdir(parents=True)
    Path("ssv2/videos").mkdir()
    (labels / "labels.json").write_text(json.dumps({"Moving something left": "0"}))
    for number, split in enumerate(("train", "validation")):
        shutil.copy(videos / "train/left" / f"{number}.mp4", f"ssv2/videos/{number}.mp4")
        row = {"id": str(number), "template": "Moving [something] left"}
        (labels / f"{split}.json").write_text(json.dumps([row]))


def like_ucf101(videos: Path) -> None:
    """Two videos in the form of UCF101."""
    lists = Path("ucfTrainTestlist")
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Left\n")
    Path("UCF-101/Left").mkdir(parents=True)
    for number, (name, label) in enumerate((("trainlist01.txt", " 1"), ("testlist01.txt", ""))):
        clip = f"Left/v_Left_g0{number + 1}_c01.avi"
        shutil.copy(videos / "train/left" / f"{number}.mp4", f"UCF-101/{clip}")
        (lists / name).write_text(f"{clip}{label}\n")


def like_epic100(videos: Path) -> None:
    """Two actions in the form of EPIC-KITCHENS-100."""
    tables = Path("epic-kitchens-100-annotations")
    tables.mkdir()
    header = (
        "narration_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class\n"
    )
    Path("EPIC-KITCHENS/P01/videos").mkdir(parents=True)
    for number, (verb, move) in enumerate((("take", "left"), ("put", "right"))):
        shutil.copy(videos / f"train/{move}/0.mp4", f"EPIC-KITCHENS/P01/videos/P01_0{number}.MP4")
        for split, start in (("train", "00.00"), ("validation", "00.20")):
            times = f"00:00:{start},00:00:00.40"
            row = f"P01_0{number}_{split},P01_0{number},{times},{verb},{number},cup,0\n"
            path = tables / f"EPIC_100_{split}.csv"
            path.write_text((path.read_text() if path.exists() else header) + row)


@pytest.fixture
def workshop(
    tmp_path: Path, base: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workshop]:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base / "videos", "videos")
    like_ssv2(base / "videos")
    like_ucf101(base / "videos")
    like_epic100(base / "videos")
    for name in ("train.csv", "val.csv", "clip.mp4"):
        shutil.copy(base / name, name)
    Path("lists").mkdir()
    shutil.copy("val.csv", "lists/fold1.txt")
    Path("recipes").symlink_to(ROOT / "recipes")
    yield Workshop(tmp_path, base, cli)


def pages() -> list[Any]:
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.slow if page.stem in LONG_PAGES else (),
        )
        for page in PAGES
    ]


@pytest.mark.parametrize("page", pages())
def test_the_commands_of_a_page_work(page: Path, workshop: Workshop) -> None:
    for line in commands_of_page(page):
        if words_of(line)[0] == "demo":
            continue  # has a test of its own
        if line.endswith("ufc101"):  # shown with its error
            assert workshop.cli(*words_of(line)).code == 2
            continue
        workshop.run(line)
    if page == PAGES[0]:  # everything is where it says
        assert Path("prepared/videos/dataset.json").exists()
        assert Path("runs/small/recipe.yaml").exists()
        assert Path("runs/small-finetune/results/finetuned-val-2x1.json").exists()
        assert Path("clip.masks.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG_HELP else ())
        for name in COMMANDS
        if name != "demo"
    ],
)
def test_the_examples_of_a_help_page_work(
    name: str, workshop: Workshop, cli: Callable[..., Any]
) -> None:
    lines = commands_of_help(name, cli)
    assert lines
    for line in lines:
        if any(one in line for one in OTHERS_FILES):
            continue
        for made in ("runs", "prepared"):
            shutil.rmtree(made, ignore_errors=True)
        workshop.run(line)


# The blocks of extend.md are pieces of the package; `test_extend.py` puts them in their places.
SCRIPTED = [page for page in PAGES if page.name != "extend.md"]


@pytest.mark.parametrize("page", SCRIPTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(
    page: Path, workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for path in re.findall(r'"((?:runs|prepared|hub)/[^"]*)"', code):
            workshop.provide(path)
        if page.name == "predict.md" and "load_file" in code:
            workshop.run("tats embed prepared/videos --run runs/small --out val.safetensors")
        names: dict[str, Any] = {}
        exec(code, names)
        if page == PAGES[0]:
            assert names["features"].shape == (1, 128)
        for row in capsys.readouterr().out.splitlines() if page.name == "scale.md" else []:
            assert row in page.read_text(), "a number has changed"


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M)
    }
    assert shown and shown <= targets


def headings_of(page: Path) -> set[str]:
    """The anchors that a page's headings get, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    plain = [re.sub(r"[`*]", "", one).lower() for one in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", one).strip().replace(" ", "-") for one in plain}


LINKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "commands").glob("*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in headings_of(target), f"{path}#{anchor}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
