"""The hook: an import finder through which an unmodified coqui-tts finds APNet2 under the names it looks for.

This module is imported at every start of Python, also by programs that have nothing to do with speech. So it uses only
what the interpreter has loaded by then, and the changes to coqui's functions (`_host`) wait until coqui imports them.

`APNET2_TTS_PLUGIN=0` in the environment switches the hook off: coqui-tts is then as if the plugin were not installed.
"""

import os
import sys

ALIASES = {
    "TTS.vocoder.configs.apnet2_config": "apnet2_tts_plugin.config",
    "TTS.vocoder.models.apnet2": "apnet2_tts_plugin.model",
}
WRAPPED = (
    "TTS.api",
    "TTS.bin.synthesize",
    "TTS.server.server",
    "TTS.utils.manage",
    "TTS.utils.synthesizer",
    "TTS.vocoder.configs",
    "trainer.trainer",
)


class AliasLoader:
    """Loads a module of the plugin under coqui's name for it: one module and one set of classes, two names."""

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        from importlib import import_module

        sys.modules[module.__name__] = import_module(ALIASES[module.__name__])


class Finder:
    """Finds the aliases, and has the modules in `WRAPPED` wrapped as soon as they are loaded."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in ALIASES:
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, AliasLoader)
        if name in WRAPPED:
            return cls._wrapping_spec(name, path, target)
        return None

    @classmethod
    def _wrapping_spec(cls, name, path, target):
        """The spec that the other finders give, with a loader that wraps the module once it has run."""
        others = (finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                from apnet2_tts_plugin import _host

                _host.load(module, run)

            spec.loader.exec_module = exec_module  # of this loader alone: each import has its own
        return spec


def install():
    """Put the finder first on `sys.meta_path` and wrap what is imported already. A second call changes nothing."""
    if os.environ.get("APNET2_TTS_PLUGIN") == "0" or Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, Finder)
    loaded = [sys.modules[name] for name in WRAPPED if name in sys.modules]
    if loaded:
        from apnet2_tts_plugin import _host

        for module in loaded:
            _host.wrap(module)
