"""`tats env`."""

import torch

from tatscli import __version__
from tatscli.commands import env


def test_json_names_versions_devices_and_paths(cli):
    told = cli("env", "--json").json()
    assert told["tats"] == __version__
    assert told["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert told["imports"] == {"torch": "ok", "torchvision": "ok", "av": "ok"}
    assert told["devices"][-1] == "cpu"
    assert len(told["devices"]) - 1 == torch.cuda.device_count() + torch.backends.mps.is_available()


def test_the_table_shows_the_same(cli):
    outcome = cli("env")
    assert outcome.code == 0
    assert __version__ in outcome.stdout
    assert "imports.torchvision" in outcome.stdout


def test_what_is_missing_or_broken_is_told_and_stops_nothing(cli, monkeypatch, tmp_path):
    (tmp_path / "torchvision_alien.py").write_text("raise RuntimeError('no nms\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(env, "MUST_IMPORT", ("torch", "torchvision_alien", "no_such_package"))
    monkeypatch.setattr(env, "EXTRAS", ("no-such-package",))
    told = cli("env", "--json").json()
    assert told["imports"]["torchvision_alien"] == "RuntimeError: no nms"
    assert told["imports"]["no_such_package"].startswith("ModuleNotFoundError")
    assert told["packages"]["no-such-package"] is None
    assert "not installed" in cli("env").stdout
