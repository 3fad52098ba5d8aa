"""APNet2, a neural vocoder that predicts amplitude and phase spectra, as a plugin for an unmodified coqui-tts.

Once installed, coqui-tts knows the vocoder by itself, because Python imports this package when it starts. Where it does
not (`python -S`, `pip install --target`), `import apnet2_tts_plugin` does the same. It costs no other import: whatever
needs torch or coqui-tts is imported when it is used.
"""

from apnet2_tts_plugin import _boot

__version__ = "0.1.0"

_boot.install()
