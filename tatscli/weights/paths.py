"""Recognising paths of weights that another program wrote, without opening them or torch."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
"""Suffixes of files of weights."""

CONFIG = "config.json"
"""A file that folders of `transformers` and timm have, and runs and checkpoints do not."""


def is_foreign(path: Path | str) -> bool:
    """Whether a path is weights from another program: a file, or a folder with a `config.json`.

    A file inside one of our checkpoints means that checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path.suffix in SUFFIXES and not (path.parent / "meta.json").is_file()
    ours = (path / "meta.json").is_file() or (path / "checkpoints").is_dir()
    return (path / CONFIG).is_file() and not ours


def own_folder(path: Path) -> Path:
    """Return the checkpoint folder of a file inside it; any other path unchanged."""
    inside = path.is_file() and path.suffix in SUFFIXES and (path.parent / "meta.json").is_file()
    return path.parent if inside else path


def name_of(path: Path) -> str:
    """Return a name for weights: that of the folder, or of the file without `SUFFIXES`."""
    path = path.resolve()
    while path.suffix in SUFFIXES and not path.is_dir():
        path = path.with_suffix("")
    return path.name
