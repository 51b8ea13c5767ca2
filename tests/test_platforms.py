"""Modules can be imported where the system lacks what only POSIX has."""

from __future__ import annotations

import subprocess
import sys

BARE = """
import importlib, multiprocessing.reduction, os, pkgutil, signal, sys
import torch, torchvision, av, filelock  # their own affair

for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGKILL", "SIGALRM", "alarm", "pthread_kill", "pthread_sigmask"):
    delattr(signal, name)
for name in ("sched_getaffinity", "memfd_create", "pwrite", "setpgrp", "fork", "getpgid", "killpg"):
    delattr(os, name)
del multiprocessing.reduction.DupFd

import tatscli

found = [one.name for one in pkgutil.walk_packages(tatscli.__path__, "tatscli.")]
for name in found:
    if name != "tatscli.__main__":
        importlib.import_module(name)
print(len(found))
"""


def test_every_module_is_imported_without_posix() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200
