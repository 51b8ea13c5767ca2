"""Which paths are weights that another program wrote, told without opening them; no torch here."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
"""How files of weights end."""

CONFIG = "config.json"
"""What a folder of `transformers` or timm has, and a run or checkpoint has not."""


def is_foreign(path: Path | str) -> bool:
    """Whether a path is weights of others: a file of them, or a folder with a `config.json`.

    A file inside a checkpoint means that checkpoint, so it is ours.
    """
    path = Path(path)
    if path.is_file():
        return path.suffix in SUFFIXES and not (path.parent / "meta.json").is_file()
    ours = (path / "meta.json").is_file() or (path / "checkpoints").is_dir()
    return (path / CONFIG).is_file() and not ours


def own_folder(path: Path) -> Path:
    """Return the checkpoint that a file inside it means; any other path as it is."""
    inside = path.is_file() and path.suffix in SUFFIXES and (path.parent / "meta.json").is_file()
    return path.parent if inside else path


def name_of(path: Path) -> str:
    """Return what to call weights by their path: the folder, or the file without `SUFFIXES`."""
    path = path.resolve()
    while path.suffix in SUFFIXES and not path.is_dir():
        path = path.with_suffix("")
    return path.name
