"""What the hook changes in coqui-tts and its Trainer: a few functions, unchanged unless the vocoder is an APNet2.

`load` runs each of these modules when it is imported, and then wraps its functions. The keys of `WRAPS` are the only
names inside coqui's modules that the plugin relies on; one that a later coqui-tts has moved is left out with a warning.
"""

import contextlib
import copy
import functools
import logging
import operator
import os
import sys

logger = logging.getLogger(__name__)
console = logging.getLogger("TTS.apnet2")  # below coqui's own logger, which its commands show


def load(module, run) -> None:
    """Have `run` execute `module`, and wrap it. `tts-server` loads its models right then: stock shows a traceback for
    each mistake of its user; the plugin's get one line. A process of somebody else's that imports the
    server is not ended."""
    try:
        run(module)
    except Exception as error:
        if module.__name__ == "TTS.server.server" and _is_tts_server():
            _end_in_one_line("tts-server", error)
        raise
    wrap(module)


def _is_tts_server() -> bool:
    """Whether this process is the command `tts-server` or `python -m TTS.server.server`."""
    return os.path.basename(sys.argv[0]).partition(".")[0] == "tts-server" or "TTS.server.server" in sys.orig_argv


def wrap(module) -> None:
    """Replace the functions of `module` that `WRAPS` names, in their class or module; those wrapped already stay."""
    if module.__name__ == "TTS.vocoder.configs":
        vars(module).setdefault("__getattr__", _find_config)
    for path, make in WRAPS[module.__name__].items():
        owner_path, _, name = path.rpartition(".")
        try:
            owner = operator.attrgetter(owner_path)(module) if owner_path else module
            original = getattr(owner, name)
        except AttributeError:
            logger.warning(
                "apnet2-tts-plugin: this coqui-tts has no %s.%s, so APNet2 may not work everywhere",
                module.__name__,
                path,
            )
            continue
        if not hasattr(original, "wrapped_for_apnet2"):
            wrapper = functools.wraps(original)(make(original))
            wrapper.wrapped_for_apnet2 = True
            setattr(owner, name, wrapper)


def _find_config(name: str):
    """`from TTS.vocoder.configs import Apnet2Config`, as coqui's own: imported when it is asked for, because our
    configuration needs this module first."""
    if name != "Apnet2Config":
        raise AttributeError(f"module 'TTS.vocoder.configs' has no attribute {name!r}")
    from apnet2_tts_plugin.config import Apnet2Config

    return Apnet2Config


_ACOUSTIC_ITEM = {
    "description": "FastPitch that comes with apnet2-tts-plugin: one voice, no phonemizer, no download",
    "default_vocoder": "apnet2",
    "license": "MPL-2.0",
}


def _list_models(original):
    """`ModelManager.__init__`: named models, and the bundled acoustic model, join the catalogue, for `--list_models`
    and `--model_info_by_name`."""

    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        from apnet2_tts_plugin.weights import store

        items = {
            store.full_name(folder): {"description": f"APNet2 vocoder in {folder}"} for folder in store.names().values()
        }
        items[store.ACOUSTIC_MODEL] = _ACOUSTIC_ITEM
        for full_name, item in items.items():
            kind, language, dataset, name = full_name.split("/")
            try:
                datasets = self.models_dict[kind].setdefault(language, {})
                datasets.setdefault(dataset, {}).setdefault(name, dict(item))
            except (AttributeError, KeyError, TypeError):  # somebody's own catalogue, or that of a later coqui-tts
                return

    return __init__


def _find_models(original):
    """`ModelManager.download_model`: stock takes no short names and no safetensors, rewrites the config in its place,
    and leaves an empty folder for a model it has no address of, which breaks every later call."""

    def download_model(self, model_name, *args, **kwargs):
        from apnet2_tts_plugin.weights import store

        if (acoustic := store.acoustic_files(model_name)) is not None:
            return *acoustic, {**_ACOUSTIC_ITEM, "model_type": "tts_models"}
        folder = _apnet2_folder(model_name)
        if folder is None:
            return original(self, model_name, *args, **kwargs)
        return *_files(folder), {"model_type": "vocoder_models"}

    return download_model


def _keep_vocoder(original):
    """`TTS.api.TTS.__init__`: stock drops `vocoder_name` when `model_path` is given, and asks for both of a vocoder's
    paths though one leads to the other."""

    def __init__(self, *args, **kwargs):
        model_name = args[0] if args else kwargs.get("model_name")
        original(self, *args, **_with_vocoder_paths(model_name, kwargs))

    return __init__


def _with_vocoder_paths(model_name: str | None, kwargs: dict) -> dict:
    """The arguments of `TTS`, with both paths of the vocoder if it is an APNet2, and otherwise as they are."""
    from apnet2_tts_plugin.errors import ModelError

    name, path = kwargs.get("vocoder_name"), kwargs.get("vocoder_path")
    named, placed = _named_vocoder(name), _placed_vocoder(path, kwargs.get("vocoder_config_path"))
    if (named and path) or (name and placed):
        raise ModelError(f"vocoder_name {name} and vocoder_path {path or placed[0]}: give one of them")
    if name and not named and not path and kwargs.get("model_path"):
        console.warning("%s is not used: with model_path, coqui-tts takes its own vocoders by vocoder_path", name)
    # With a model's name, the vocoder's comes again in `download_model_by_name`.
    vocoder = placed or (named if kwargs.get("model_path") or not model_name else None)
    if vocoder is None:
        return kwargs
    return {**kwargs, "vocoder_path": str(vocoder[0]), "vocoder_config_path": str(vocoder[1])}


def _named_vocoder(name: str | None) -> tuple | None:
    """Weights and config of the APNet2 `name`; None for the full name of another vocoder. One without slashes can be no
    other's: ModelNotFoundError if there is none."""
    from apnet2_tts_plugin.errors import ModelNotFoundError
    from apnet2_tts_plugin.weights import store

    if not name or ("/" in name and not store.is_apnet2(name)):
        return None
    try:
        return _files(store.resolve(name))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; the full names of other vocoders are in `tts --list_models`") from error


def _placed_vocoder(path, config) -> tuple | None:
    """Weights and config of the APNet2 that one or both of these paths lead to; None for another vocoder, or none."""
    from pathlib import Path

    from apnet2_tts_plugin.weights import find, store

    if not path and not config:
        return None
    path = path or Path(config).parent
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    config = config or folder / find.CONFIG_NAME
    return (find.find_weights(path), config) if store.is_config(config) else None


def _add_vocoder(original):
    """`TTS.api.TTS.download_model_by_name`: for an acoustic model without a default vocoder, which most are, stock
    drops the one that was asked for."""

    def download_model_by_name(self, model_name, vocoder_name=None, *args, **kwargs):
        from apnet2_tts_plugin.errors import ModelError

        if _apnet2_folder(model_name):
            raise ModelError(f"{model_name} is a vocoder: give it as vocoder_name, and a TTS model as model_name")
        # The path came with the TTS model, if there is one, and is not meant for a voice that is converted after it.
        by_path = self.synthesizer is None or "voice_conversion_models" not in model_name
        # Before the model, so that no download goes before a wrong name.
        path, config = (self.vocoder_path, self.vocoder_config_path) if by_path else (None, None)
        vocoder = _named_vocoder(vocoder_name) or _placed_vocoder(path, config)
        if vocoder is None:
            files = original(self, model_name, vocoder_name, *args, **kwargs)
            if (path or vocoder_name) and (files[2] is None or (path and files[2] != path)):
                instead = "without a vocoder" if files[2] is None else f"with {files[2]}"
                console.warning("%s is not used: coqui-tts uses %s %s", path or vocoder_name, model_name, instead)
            return files
        from apnet2_tts_plugin.pairing import plan

        plan.check_output(model_name.rpartition("/")[2])
        with _offer_bundled_model(self.manager, model_name):
            return *original(self, model_name, vocoder_name, *args, **kwargs)[:2], *vocoder

    return download_model_by_name


@contextlib.contextmanager
def _offer_bundled_model(manager, model_name: str):
    """Say which acoustic model needs no download while another one is downloaded, and above all when it cannot be."""
    from requests import RequestException

    from apnet2_tts_plugin.errors import ModelError, one_line
    from apnet2_tts_plugin.weights import store

    there = model_name == store.ACOUSTIC_MODEL or (manager.output_prefix / model_name.replace("/", "--")).is_dir()
    if not there:
        console.info("%s needs no download and speaks with any APNet2, as --model_name", store.ACOUSTIC_MODEL)
    try:
        yield
    except RequestException as error:
        raise ModelError(
            f"{model_name} cannot be downloaded ({one_line(error)}); {store.ACOUSTIC_MODEL} needs no download"
        ) from error


def _files(folder) -> tuple:
    """Weights and config in the folder of a named model."""
    from apnet2_tts_plugin.weights import find

    return find.find_weights(folder), folder / find.CONFIG_NAME


def _plan_pairing(original):
    """`Synthesizer.__init__`: stock never compares the two audio settings; with an APNet2 they are, and refused here if
    they do not go together, before anything is vocoded, and the log says what will be converted."""

    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if _has_apnet2(self):
            for slot in ("tts_model", "vc_model"):
                if getattr(self, slot) is not None:
                    _pairing(self, slot)

    return __init__


def _pairing(synthesizer, slot: str):
    """The pairing of the model in `slot` with the vocoder, made at the first call and again when one is replaced."""
    model, vocoder = getattr(synthesizer, slot), synthesizer.vocoder_model
    made = synthesizer.__dict__.get(f"{slot}_for_apnet2")
    if made is None or made[0] is not model or made[1] is not vocoder:
        from apnet2_tts_plugin.pairing import convert, report

        made = model, vocoder, report.announce(convert.pair(model, vocoder.config))
        synthesizer.__dict__[f"{slot}_for_apnet2"] = made
    return made[2]


def _vocode(synthesizer, slot: str, output):
    """Waveform of an output of the model in `slot`."""
    return _pairing(synthesizer, slot).vocode(output, synthesizer.vocoder_model)


def _vocode_sentences(original):
    """`Synthesizer.tts`: stock looks for the vocoder's input in the model's `outputs`, fails on models that answer with
    a finished waveform alone (XTTS, Bark, Tortoise) and, by a traceback, on a text without words, takes the first
    sample of a converted voice for all of it, has no vocoder in the place of a VITS's own decoder, and counts seconds,
    also of the silence that it trims, by the acoustic model's sample rate."""

    def tts(self, text="", *args, **kwargs):
        if not _has_apnet2(self) or self.tts_model is None:
            return original(self, text, *args, **kwargs)
        if not any(map(str.isalnum, text or "")) and not kwargs.get("source_wav"):
            from apnet2_tts_plugin.errors import DataError

            raise DataError(f"the text is {text!r}, expected words to speak")
        text = _ended(self, text)
        model = _pairing(self, "tts_model").acoustic_model(self.tts_model, self.vocoder_model)

        def synthesize(*args, **kwargs):
            result = model.synthesize(*args, **kwargs)
            return {"outputs": {"model_outputs": [result["wav"]]}, **result}

        def voice_conversion(*args, **kwargs):
            return [model.voice_conversion(*args, **kwargs)]

        # Views instead of patched objects, because calls may overlap in threads.
        ap = copy.copy(getattr(model, "ap", None))
        if ap is not None:
            ap.sample_rate = self.output_sample_rate  # only `find_endpoint` is asked here
        model_view = _View(model, synthesize=synthesize, voice_conversion=voice_conversion, ap=ap)
        audio = {**self.tts_config.audio, "sample_rate": self.output_sample_rate}
        config_view = _View(self.tts_config, audio=audio)
        return original(_View(self, tts_model=model_view, tts_config=config_view), text, *args, **kwargs)

    return tts


def _ended(synthesizer, text: str) -> str:
    """The text, for the bundled acoustic model with a full stop if nothing ends it: all it learned from had an end, and
    coqui's convolutions fail on what lasts less than 17 frames."""
    from apnet2_tts_plugin.weights import store

    weights, _ = store.acoustic_files(store.ACOUSTIC_MODEL)
    is_bundled = str(synthesizer.tts_checkpoint) == str(weights)
    return f"{text.rstrip()}." if is_bundled and text and text.rstrip()[-1] not in ".!?" else text


def _convert_voice(original):
    """`Synthesizer.voice_conversion`: stock gives the vocoder whatever the model answers with, mostly a waveform."""

    def voice_conversion(self, *args, **kwargs):
        if not _has_apnet2(self) or self.vc_model is None:
            return original(self, *args, **kwargs)

        def inference(output):
            return _vocode(self, "vc_model", output)

        view = _View(self, vocoder_model=_View(self.vocoder_model, inference=inference))
        return original(view, *args, **kwargs)

    return voice_conversion


class _View:
    """An object seen through: all its attributes, except for those given."""

    def __init__(self, target, **attributes):
        self.__dict__.update(attributes, _target=target)

    def __getattr__(self, name):
        return getattr(self._target, name)


def _convert_input(original):
    """`Synthesizer._run_vocoder`: stock rescales a mel by the vocoder's settings only, neither its logarithm nor its
    bands, and takes the waveform of an end-to-end model for a mel."""

    def _run_vocoder(self, mel_postnet_spec, *args, **kwargs):
        if not _has_apnet2(self):
            return original(self, mel_postnet_spec, *args, **kwargs)
        return _vocode(self, "tts_model", mel_postnet_spec)

    return _run_vocoder


def _say_it_in_one_line(original):
    """`TTS.bin.synthesize.main`: stock shows a traceback for each mistake of its user; the plugin's get one line."""

    def main(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except Exception as error:
            _end_in_one_line("tts", error)
            raise

    return main


def _end_in_one_line(command: str, error: Exception) -> None:
    """End the process by a line with the error if it is the plugin's."""
    from apnet2_tts_plugin.errors import Apnet2Error

    if isinstance(error, Apnet2Error):
        sys.exit(f"{command}: {error}")


def _write_config_whole(original):
    """`trainer.trainer.copy_model_files`: stock empties the `config.json` of a run that goes on, then writes it anew,
    from each process; one that is killed then, or another that reads then, finds nothing to go on with. Where there are
    checkpoints, `Session` writes it, once it is known that the run is not another one of the same name. Stock keeps
    relative paths, which mean nothing to who goes on from another folder."""

    def copy_model_files(config, out_path, *args, **kwargs):
        if getattr(config, "model", None) != "apnet2":
            return original(config, out_path, *args, **kwargs)
        from pathlib import Path
        from tempfile import TemporaryDirectory

        from trainer.utils.distributed import is_main_process

        config.make_paths_absolute()
        if is_main_process() and not any(Path(out_path).glob("*.pth")):
            with TemporaryDirectory(dir=out_path, prefix=".", suffix=".tmp") as folder:
                original(config, folder, *args, **kwargs)
                for name in os.listdir(folder):
                    os.replace(os.path.join(folder, name), os.path.join(out_path, name))

    return copy_model_files


def _keep_run_folder(original):
    """`trainer.trainer.remove_experiment_folder`: stock deletes a run that fails before its first checkpoint, with the
    log that says why."""

    def remove_experiment_folder(experiment_path, *args, **kwargs):
        from apnet2_tts_plugin.weights import store

        if not store.is_config(f"{experiment_path}/config.json"):
            original(experiment_path, *args, **kwargs)

    return remove_experiment_folder


def _apnet2_folder(name: str | None):
    """The folder of the APNet2 `name`; None for another name, ModelNotFoundError for one that could be no other's."""
    from apnet2_tts_plugin.weights import store

    return store.resolve(name) if name and store.is_apnet2(name) else None


def _has_apnet2(synthesizer) -> bool:
    """Whether the vocoder is an APNet2; if the module of its class was never imported, it cannot be."""
    module = sys.modules.get("apnet2_tts_plugin.model")
    return module is not None and isinstance(getattr(synthesizer, "vocoder_model", None), module.Apnet2)


WRAPS = {
    "TTS.api": {
        "TTS.__init__": _keep_vocoder,
        "TTS.download_model_by_name": _add_vocoder,
    },
    "TTS.bin.synthesize": {"main": _say_it_in_one_line},
    "TTS.server.server": {},
    "TTS.utils.manage": {
        "ModelManager.__init__": _list_models,
        "ModelManager.download_model": _find_models,
    },
    "TTS.utils.synthesizer": {
        "Synthesizer.__init__": _plan_pairing,
        "Synthesizer.tts": _vocode_sentences,
        "Synthesizer.voice_conversion": _convert_voice,
        "Synthesizer._run_vocoder": _convert_input,
    },
    "TTS.vocoder.configs": {},
    "trainer.trainer": {
        "copy_model_files": _write_config_whole,
        "remove_experiment_folder": _keep_run_folder,
    },
}
