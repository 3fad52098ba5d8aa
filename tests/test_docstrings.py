"""The examples in the package's docstrings say what really happens."""

import doctest
import importlib
import pkgutil

import torch

import apnet2_tts_plugin


def test_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("TTS_HOME", str(tmp_path))
    tried = 0
    for info in pkgutil.walk_packages(apnet2_tts_plugin.__path__, "apnet2_tts_plugin."):
        tried += run(importlib.import_module(info.name))
    assert tried + run(apnet2_tts_plugin) >= 8


def run(module) -> int:
    """Try the examples of a module; how many there are."""
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert not result.failed
    return result.attempted
