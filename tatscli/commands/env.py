"""`tats env`: versions, devices and paths, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module, metadata
from typing import Any

from tatscli.commands.options import Json, Quiet, Verbose, reporter

EPILOG = """
Examples:
  tats env
  tats env --json
"""

PACKAGES = ("torch", "torchvision", "av", "numpy", "safetensors", "pydantic", "typer")
EXTRAS = ("transformers", "ray", "tensorboard", "wandb", "onnx", "onnxscript", "onnxruntime")
SCHEDULERS = ("RANK", "WORLD_SIZE", "SLURM_", "OMPI_COMM_WORLD_", "PMI_")
MUST_IMPORT = ("torch", "torchvision", "av")  # native parts: installed is not yet usable


def env(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Show versions, devices and paths, for bug reports."""
    report = reporter(json, quiet, verbose)
    payload = describe_environment()
    rows = [
        (key, _cell(value))
        for key, value in payload.items()
        if not isinstance(value, dict) and key != "scheduler"
    ]
    if payload["scheduler"] is not None:
        rows.append(("scheduler", payload["scheduler"]["says"]))
    for group in ("packages", "imports"):
        rows += [(f"{group}.{name}", _cell(value)) for name, value in payload[group].items()]
    report.table("Environment", ("what", "value"), rows)
    report.result(payload)


def describe_environment() -> dict[str, Any]:
    """Collect what a bug report needs, whatever is missing or broken."""
    from tatscli import __file__ as package_file
    from tatscli import __version__
    from tatscli.machine import usable_cores
    from tatscli.recipe.shipped import recipes_folder

    imports = {name: _import_problem(name) for name in MUST_IMPORT}
    return {
        "tats": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "devices": _devices() if imports["torch"] is None else ["cpu"],
        "scheduler": _scheduler(),
        "executable": sys.executable,
        "package": os.path.dirname(package_file),
        "recipes": str(recipes_folder()),
        "packages": {name: _version(name) for name in PACKAGES + EXTRAS},
        "imports": {name: problem or "ok" for name, problem in imports.items()},
    }


def _scheduler() -> dict[str, Any] | None:
    """Describe the rank that a training started here would have; None without a scheduler."""
    from tatscli.engine.schedulers import find_place
    from tatscli.errors import UsageError

    if not any(name.startswith(SCHEDULERS) for name in os.environ):
        return None
    try:
        place, reason = find_place(os.environ)
    except UsageError as error:
        return {"says": f"refused: {error.message}", "problem": error.message}
    if place is None:
        return {"says": f"single process: {reason}", "rank": 0, "size": 1}
    facts = {name: getattr(place, name) for name in ("rank", "size", "local_rank", "local_size")}
    return {"says": f"{place} ({reason})", **facts, "address": place.address, "port": place.port}


def _devices() -> list[str]:
    """Name what torch can train on, the CPU last."""
    import torch

    names = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}"
        f"{' (bf16)' if torch.cuda.is_bf16_supported() else ''}"
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _import_problem(module: str) -> str | None:
    """Import a package and return why that fails, as torchvision beside an alien torch does."""
    try:
        import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not installed" if value is None else str(value)
