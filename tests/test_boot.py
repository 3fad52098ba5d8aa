"""The hook: what it adds, when it keeps out, and that coqui-tts is otherwise as it was."""

import ast
import importlib
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import apnet2_tts_plugin
from apnet2_tts_plugin import _boot, _host
from apnet2_tts_plugin.weights import store

ALIASES = """
import sys
assert "apnet2_tts_plugin.config" not in sys.modules
from TTS.vocoder.configs.apnet2_config import Apnet2Config
from TTS.vocoder.models.apnet2 import Apnet2
from apnet2_tts_plugin import config, model
assert Apnet2Config is config.Apnet2Config and Apnet2 is model.Apnet2
assert sys.modules["TTS.vocoder.configs.apnet2_config"] is config
assert sys.modules["TTS.vocoder.models.apnet2"] is model
from TTS.vocoder.configs import Apnet2Config as among_coquis
assert among_coquis is config.Apnet2Config
assert model.__name__ == model.__spec__.name == "apnet2_tts_plugin.model"
"""

PUBLIC = """
import sys
import apnet2_tts_plugin
from apnet2_tts_plugin import Apnet2Error
assert not {"torch", "numpy", "TTS"} & set(sys.modules)
from apnet2_tts_plugin import Apnet2, Apnet2Config, load_model
from apnet2_tts_plugin import config, errors, loader, model
assert (Apnet2, Apnet2Config) == (model.Apnet2, config.Apnet2Config)
assert (Apnet2Error, load_model) == (errors.Apnet2Error, loader.load_model)
"""

OFF = """
import importlib.util, sys
import apnet2_tts_plugin
assert apnet2_tts_plugin._boot.Finder not in sys.meta_path
import TTS.vocoder.configs
try:
    import TTS.vocoder.configs.apnet2_config
except ModuleNotFoundError as error:
    assert error.name == "TTS.vocoder.configs.apnet2_config"
else:
    raise AssertionError
assert not hasattr(TTS.vocoder.configs, "Apnet2Config")
from TTS.utils.manage import ModelManager
assert not hasattr(ModelManager.download_model, "__wrapped__")
"""

LATE = """
import sys
sys.path[:] = {path!r}
assert "apnet2_tts_plugin" not in sys.modules
import operator, TTS.api
from TTS.bin import synthesize
assert not hasattr(TTS.api.TTS.__init__, "wrapped_for_apnet2")
import apnet2_tts_plugin
from apnet2_tts_plugin import _host
for name, wraps in _host.WRAPS.items():
    for path in wraps:
        function = operator.attrgetter(path)(sys.modules[name])
        assert function.wrapped_for_apnet2 and not hasattr(function.__wrapped__, "wrapped_for_apnet2"), path
from TTS.vocoder.configs import Apnet2Config
"""

# What coqui-tts does without us, as far as a model of ours plays no part in it.
STOCK = """
import hashlib, json, logging, sys
import numpy as np, torch
from TTS.api import TTS
from TTS.utils.manage import ModelManager

GLOW, VITS = "tts_models/en/ljspeech/glow-tts", "tts_models/en/ljspeech/vits"
WAVEGAN = "vocoder_models/en/ljspeech/multiband-melgan"
glow, wavegan = sys.argv[1:]
by_path = dict(model_path=glow + "/model_file.pth", config_path=glow + "/config.json")
wavegan_paths = dict(vocoder_path=wavegan + "/model_file.pth", vocoder_config_path=wavegan + "/config.json")

def spoken(*args, **kwargs):
    torch.manual_seed(0), np.random.seed(0)
    try:
        wav = TTS(*args, progress_bar=False, **kwargs).tts("hello there")
    except Exception as error:
        return type(error).__name__, str(error)
    return len(wav), hashlib.sha256(np.array(wav, np.float32).tobytes()).hexdigest()

print(json.dumps({
    "models": [name for name in ModelManager().list_models() if "/apnet2" not in name and "/heart/" not in name],
    "default vocoder": spoken(GLOW),
    "named vocoder": spoken(GLOW, vocoder_name=WAVEGAN),
    "vocoder by path": spoken(**by_path, **wavegan_paths),
    "no vocoder": spoken(**by_path),
    "ignored vocoder": spoken(**by_path, vocoder_name=WAVEGAN),
    "no default vocoder": spoken(VITS),
    "unused vocoder": spoken(VITS, vocoder_name=WAVEGAN),
    "unknown vocoder": spoken(GLOW, vocoder_name="vocoder_models/en/ljspeech/none"),
    "vocoder as model": spoken(WAVEGAN),
    "unknown model": spoken("tts_models/en/ljspeech/none"),
}))
"""


def python(code: str, *arguments, options: tuple = (), **environment: str) -> str:
    """Run `code` in a fresh interpreter, outside the source tree; what it prints last."""
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env={**os.environ, **environment}, cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().rpartition("\n")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "switch"), [(ALIASES, "1"), (PUBLIC, "1"), (OFF, "0")], ids=["on", "lazy", "off"])
def test_fresh_interpreter(code, switch):
    python(code, APNET2_TTS_PLUGIN=switch)


def test_type_checkers_see_the_public_names():
    stub = ast.parse(Path(apnet2_tts_plugin.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname: importlib.import_module(node.module) for node in imports for alias in node.names}
    assert sorted(homes) == apnet2_tts_plugin.__all__
    assert all(getattr(home, name) is getattr(apnet2_tts_plugin, name) for name, home in homes.items())
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = apnet2_tts_plugin.load_modell


@pytest.mark.slow
def test_import_is_enough_without_pth_files():
    """With `-S` no `.pth` file is read; then the import does it, also for modules that are imported already."""
    path = [str(Path(apnet2_tts_plugin.__file__).parents[1]), *sys.path]
    python(LATE.format(path=path), options=("-S",))


@pytest.mark.slow
def test_coqui_is_otherwise_the_same(glow_tts, vits, wavegan, installed_vocoder):
    arguments = STOCK, glow_tts, wavegan
    without = json.loads(python(*arguments, APNET2_TTS_PLUGIN="0"))
    assert json.loads(python(*arguments)) == without
    assert sum(isinstance(result[0], int) for result in without.values()) == 7  # the others are errors


def test_start_imports_nothing_else():
    """Nothing but our two modules is added to what the interpreter loads at its start."""
    code = "import sys; print(' '.join(sorted(sys.modules)))"
    with_hook = set(python(code, options=("-I",)).split())
    without = set(python(code, options=("-S", "-I")).split()) | set(
        python(code, options=("-I",), APNET2_TTS_PLUGIN="0").split()
    )
    assert {name for name in with_hook if name.startswith("apnet2")} == {"apnet2_tts_plugin", "apnet2_tts_plugin._boot"}
    assert with_hook <= without | {"apnet2_tts_plugin", "apnet2_tts_plugin._boot"}


def test_second_install_changes_nothing():
    import TTS.utils.manage

    before = list(sys.meta_path), TTS.utils.manage.ModelManager.download_model
    _boot.install()
    _host.wrap(TTS.utils.manage)
    assert (sys.meta_path, TTS.utils.manage.ModelManager.download_model) == before
    assert sys.meta_path.count(_boot.Finder) == 1


def test_every_wrapped_module_has_its_wraps():
    assert set(_boot.WRAPPED) == set(_host.WRAPS)


def test_moved_functions_give_a_warning_each(caplog):
    """A later coqui-tts without one of the functions, or a class: the others are wrapped all the same."""
    module = types.ModuleType("TTS.api")
    module.TTS = type("TTS", (), {"__init__": lambda self: None})
    _host.wrap(module)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "TTS.api.TTS.download_model_by_name" in caplog.text
    assert module.TTS.__init__.wrapped_for_apnet2
    module.TTS()
    caplog.clear()
    _host.wrap(types.ModuleType("TTS.utils.synthesizer"))
    assert len(caplog.records) == len(_host.WRAPS["TTS.utils.synthesizer"])


def test_what_is_not_ours_is_left_to_others():
    """Also a wrapped module that a later coqui-tts no longer has: it fails to import as it would without us."""
    for name in ("TTS", "TTS.vocoder.models.gan", "json", "apnet2"):
        assert _boot.Finder.find_spec(name) is None
    assert _boot.Finder.find_spec("TTS.api", path=[]) is None


def test_our_configuration_is_among_coquis():
    """And nothing else is that was not there."""
    from TTS.vocoder import configs

    assert configs.Apnet2Config is apnet2_tts_plugin.Apnet2Config
    with pytest.raises(AttributeError, match="module 'TTS.vocoder.configs' has no attribute 'Apnet3Config'"):
        _ = configs.Apnet3Config


def test_our_models_are_listed(installed_vocoder, caplog):
    """Each under the dataset that its configuration names; the tiny one's names none."""
    from TTS.utils.manage import ModelManager

    name = "vocoder_models/universal/unknown/apnet2"
    assert store.full_name(store.BUNDLED / "apnet2") == "vocoder_models/en/natural/apnet2"
    manager = ModelManager()
    assert manager.list_models().count(name) == 1
    with caplog.at_level(logging.INFO, "TTS"):
        manager.model_info_by_full_name(name)
        index = manager.list_vocoder_models().index(name) + 1
        caplog.clear()
        manager.model_info_by_idx(f"vocoder_models/{index}")
    assert "Model name: apnet2" in caplog.text
    assert str(installed_vocoder) in caplog.text


@pytest.mark.parametrize("catalogue", [{"tts_models": {}}, {"vocoder_models": []}, None])
def test_other_catalogues_are_left_alone(catalogue, installed_vocoder, tmp_path):
    from TTS.utils.manage import ModelManager

    path = tmp_path / "models.json"
    path.write_text(json.dumps(catalogue))
    assert ModelManager(models_file=path).models_dict == catalogue
