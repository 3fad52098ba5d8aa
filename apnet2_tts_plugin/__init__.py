"""APNet2, a neural vocoder that predicts amplitude and phase spectra, as a plugin for an unmodified coqui-tts.

Once installed, coqui-tts knows the vocoder by itself, because Python imports this package when it starts. Where it does
not (`python -S`, `pip install --target`), `import apnet2_tts_plugin` does the same. It costs no other import: whatever
needs torch or coqui-tts is imported when it is used.

Example:

    >>> import torch
    >>> from apnet2_tts_plugin import load_model
    >>> model = load_model("apnet2")
    >>> mel = model.log_mel(torch.zeros(1, 22050))  # natural logarithm, (1, 80, 87)
    >>> model.inference(mel).shape
    torch.Size([1, 1, 22016])
    >>> model.copy_synthesis(torch.zeros(16000), sample_rate=16000).shape
    torch.Size([22050])

The rooms, from what users call down to what everything rests on: `__main__`, `cli` with `cli_files`, `cli_compare` and
`cli_models`, `cli_shared`, `_boot` (when coqui-tts is changed) and `_host` (what is changed in it); `finetuning`,
`recipe`, `bench`, `evaluation`, `piped`, `vocode`, `batch`, `export`, `loader`; `pairing`; `model`; `training`;
`weights`, `metrics`; `network`; `audio_stream`, `audio`, `config`; `workers`, `files`, `errors`. Each imports from
those behind it only.
"""

from apnet2_tts_plugin import _boot

__version__ = "0.1.0"
__all__ = ["Apnet2", "Apnet2Config", "Apnet2Error", "load_model"]

_HOMES = {"Apnet2": "model", "Apnet2Config": "config", "Apnet2Error": "errors", "load_model": "loader"}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])


_boot.install()
