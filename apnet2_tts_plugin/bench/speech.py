"""From text to waveform with the bundled voice, stage by stage."""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from TTS.api import TTS

from apnet2_tts_plugin.bench import clock
from apnet2_tts_plugin.bench.measure import Plan
from apnet2_tts_plugin.network.runtime import RUNTIMES
from apnet2_tts_plugin.weights import store


@dataclass
class Stages:
    """Seconds, medians over the rounds: what the acoustic model and all around it take, and what the vocoder takes."""

    system: str
    audio_seconds: float
    acoustic_seconds: float
    vocoder_seconds: float


def measure(words: list[str], text: str, plan: Plan) -> list[Stages]:
    """Let those of the systems that coqui-tts finds by their names speak a text; in rounds, one after the other."""
    names = {word: word.partition("@")[::2] for word in words}
    names = {word: name for word, name in names.items() if name[0] in store.names() and name[1] in ("", *RUNTIMES)}
    speakers = {word: Speaker(*name, plan.device) for word, name in names.items()}
    times: dict[str, list[Stages]] = {word: [] for word in speakers}
    for i in tqdm(range(plan.rounds + 1), desc="speech", unit="round"):
        for word, speaker in speakers.items():
            time.sleep(clock.PAUSE)
            stages = speaker.speak(word, text)
            if i:
                times[word].append(stages)
    return [_median(stages) for stages in times.values()]


class Speaker:
    """The bundled voice with a vocoder, which is timed.

    Args:
        name: The vocoder's name.
        runtime: How it computes, or "".
        device: "cpu" or "cuda".
    """

    def __init__(self, name: str, runtime: str, device: str):
        level = logging.root.manager.disable
        logging.disable(logging.INFO)  # coqui-tts tells what it loads
        try:
            self.tts = TTS(store.ACOUSTIC_MODEL, vocoder_name=name, progress_bar=False).to(device)
        finally:
            logging.disable(level)
        self.device = device
        vocoder = self.tts.synthesizer.vocoder_model
        if runtime:
            vocoder.use_runtime(runtime)
        self.vocoder_seconds = 0.0
        vocoder.inference = self._timed(vocoder.inference)
        self.sample_rate = vocoder.config.audio.sample_rate

    def speak(self, word: str, text: str) -> Stages:
        """Say the text once."""
        self.vocoder_seconds = 0.0
        spoken: list[Any] = []
        seconds = clock.timed(lambda: spoken.extend(self.tts.tts(text)), self.device)
        return Stages(word, len(spoken) / self.sample_rate, seconds - self.vocoder_seconds, self.vocoder_seconds)

    def _timed(self, inference: Callable) -> Callable:
        def run(*arguments: Any, **settings: Any) -> Any:
            result = None

            def call() -> None:
                nonlocal result
                result = inference(*arguments, **settings)

            self.vocoder_seconds += clock.timed(call, self.device)
            return result

        return run


def _median(stages: list[Stages]) -> Stages:
    first = stages[0]
    acoustic = statistics.median(item.acoustic_seconds for item in stages)
    vocoder = statistics.median(item.vocoder_seconds for item in stages)
    return Stages(first.system, first.audio_seconds, acoustic, vocoder)
