"""Files by systems: every recording through every system, and all metrics of each copy, in one process or several."""

import logging
import multiprocessing
import os
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from apnet2_tts_plugin.audio import find_audio
from apnet2_tts_plugin.errors import Apnet2Error, DataError, MetricError
from apnet2_tts_plugin.evaluation.systems import Recording, aligned, make_system, read_at
from apnet2_tts_plugin.metrics.table import Metric, available

logger = logging.getLogger(__name__)

SHORTEST = 0.25  # seconds; below it most metrics say nothing
FEWEST = 2048  # samples, of the longest analysis
SPEED = "times_real_time"  # seconds of audio per second, beside the metrics


@dataclass(frozen=True)
class Task:
    """What is done with every recording.

    Attributes:
        systems: The words after `--system`, as `systems.make_system` takes them.
        device: Where networks run.
        sample_rate: Of all waveforms that are compared, in Hz.
        folder: Where the waveforms are kept as FLAC, for a report to show and play.
    """

    systems: tuple[str, ...]
    device: str
    sample_rate: int
    folder: Path


@dataclass
class Scores:
    """What became of one recording.

    Attributes:
        recording: The file.
        seconds: Its length.
        values: By system and then by metric; None where a metric could not be computed.
        waveforms: FLAC files, by system, and of the recording under "".
        remarks: Why a value is missing.
        error: Why there are no values at all; None if there are.
    """

    recording: Recording
    seconds: float = 0.0
    values: dict[str, dict[str, float | None]] = field(default_factory=dict)
    waveforms: dict[str, Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        systems: As they were asked for.
        metrics: Those whose packages are there.
        scores: Of the files that could be evaluated.
        skipped: The others.
        sample_rate: Of all waveforms that were compared, in Hz.
        conditions: How the speed was measured, in words.
    """

    systems: tuple[str, ...]
    metrics: tuple[Metric, ...]
    scores: list[Scores]
    skipped: list[Scores]
    sample_rate: int
    conditions: str


def find_recordings(sources: list[str], last: int | None = None) -> list[Recording]:
    """The audio files that are given, and those in the folders that are given.

    Args:
        sources: Files and folders.
        last: Only so many of each folder, the last by path.

    Raises:
        DataError: if there is none, or two have one name.
    """
    recordings = []
    for source in map(Path, sources):
        if source.is_file():
            recordings.append(Recording(source, source.name))
        elif source.is_dir():
            paths = find_audio(source)
            paths = paths[-last:] if last else paths
            recordings += [Recording(path, path.relative_to(source).as_posix()) for path in paths]
        else:
            raise DataError(f"{source}: no such file or folder")
    name, times = Counter(str(Path(recording.name).with_suffix("")) for recording in recordings).most_common(1)[0]
    if times > 1:
        raise DataError(f"{times} recordings are called {name}; evaluate them one folder at a time")
    return recordings


def readable(path: Path) -> str:
    """A path that can be written as UTF-8, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def compare(recordings: list[Recording], task: Task, jobs: int) -> Comparison:
    """Evaluate all systems on all recordings; a file that one of them cannot do is named in the log and left out.

    Args:
        recordings: What `find_recordings` gives.
        task: What to do with each.
        jobs: How many processes share the files. With one, there is none but this, and torch has all its threads; with
            more, each has one thread.

    Raises:
        Apnet2Error: if a system cannot be had, or no file could be evaluated.
    """
    metrics, missing = available()
    for line in missing:
        logger.warning("%s", line)
    jobs = min(jobs, len(recordings))
    done = []
    for scores in tqdm(_all_scores(recordings, task, jobs), total=len(recordings), unit="file", disable=None):
        for line in [scores.error] if scores.error else scores.remarks:
            logger.warning("%s", line)
        done.append(scores)
    evaluated = [scores for scores in done if not scores.error]
    if not evaluated:
        raise DataError(f"none of {len(done)} files could be evaluated")
    threads = 1 if jobs > 1 else torch.get_num_threads()
    conditions = f"one run per file on {task.device}; processes: {jobs}, threads in each: {threads}"
    skipped = [scores for scores in done if scores.error]
    return Comparison(task.systems, metrics, evaluated, skipped, task.sample_rate, conditions)


def _all_scores(recordings: list[Recording], task: Task, jobs: int) -> Iterator[Scores]:
    """The scores of each recording, in order."""
    worker = Worker(task)  # here too with several processes, so that a system that cannot be had is one line
    if jobs == 1:
        yield from map(worker, recordings)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_process, (task,)) as pool:
        try:
            futures = [pool.submit(_scores_of_process, recording) for recording in recordings]
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a process ended unexpectedly, perhaps for want of memory; try fewer --jobs") from error
        except BaseException:  # such as Ctrl-C: to cancel what is waiting makes Python 3.11 complain
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_process(task: Task) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback for each process
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    _worker = Worker(task)


def _scores_of_process(recording: Recording) -> Scores:
    return _worker(recording)


class Worker:
    """Evaluates recordings one by one, with systems that are loaded once.

    Args:
        task: What to do with each.

    Raises:
        Apnet2Error: if a system cannot be had.
    """

    def __init__(self, task: Task):
        self.task = task
        self.systems = {words: make_system(words, task.device) for words in task.systems}
        self.metrics, _ = available()
        self.kept = 0

    def __call__(self, recording: Recording) -> Scores:
        scores = Scores(recording)
        try:
            self._evaluate(scores)
        except DataError as error:
            scores.error = str(error)
        return scores

    def _evaluate(self, scores: Scores) -> None:
        recording, rate = scores.recording, self.task.sample_rate
        reference = read_at(recording.path, rate).numpy()
        scores.seconds = len(reference) / rate
        shortest = max(SHORTEST, FEWEST / rate)
        if scores.seconds < shortest:
            raise DataError(f"{recording.path}: has {scores.seconds:.2f} s, expected at least {shortest:g} s")
        scores.waveforms[""] = self._keep(reference)
        for words, system in self.systems.items():
            try:
                copy = system(recording)
                waveform = aligned(copy, reference, rate)
            except Apnet2Error as error:
                raise DataError(f"{recording.path}: skipped, {words}: {error}") from error
            values = {metric.name: self._value(metric, reference, waveform, words, scores) for metric in self.metrics}
            values[SPEED] = scores.seconds / copy.seconds if copy.seconds else None
            scores.values[words] = values
            scores.waveforms[words] = self._keep(waveform)

    def _value(
        self, metric: Metric, reference: np.ndarray, waveform: np.ndarray, words: str, scores: Scores
    ) -> float | None:
        try:
            return metric.compute(reference, waveform, self.task.sample_rate)
        except MetricError as error:
            scores.remarks.append(f"{scores.recording.path}: {words}: {error}")
            return None

    def _keep(self, waveform: np.ndarray) -> Path:
        """Write a waveform as 16-bit FLAC and return the file."""
        self.kept += 1
        path = self.task.folder / f"{os.getpid()}-{self.kept}.flac"
        soundfile.write(path, np.clip(waveform, -1, 1), self.task.sample_rate, subtype="PCM_16")
        return path
