"""Commands that turn files into files: which are read, what each becomes, and doing it, one by one or many at once."""

import io
import logging
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import soundfile
from tqdm import tqdm

from apnet2_tts_plugin.audio import Source, StandardInput, has_suffix
from apnet2_tts_plugin.errors import Apnet2Error, DataError, OutputError, one_line
from apnet2_tts_plugin.files import write_atomically
from apnet2_tts_plugin.workers import Check, go_on, in_threads

logger = logging.getLogger(__name__)

STANDARD = "-"  # standard input, or standard output
NAMED = 3  # of the files that a folder has and that are left out
WINDOW = 256  # jobs among which those of like lengths are looked for
IN_MEMORY = 1800.0  # seconds of audio that threads work on at the same time: ten minutes take about 400 MB


@dataclass(frozen=True)
class Job:
    """One file to make.

    Attributes:
        source: What is read.
        target: What is written; None for standard output.
        suffix: In whose format.
    """

    source: Source
    target: Path | None
    suffix: str


@dataclass(frozen=True)
class Sharing:
    """How threads share the jobs.

    Attributes:
        n_threads: How many threads.
        seconds: The length of a file's audio in seconds, roughly, at little cost.
        most: How much audio is done at once by a thread, in seconds, if files are shorter than that.
    """

    n_threads: int
    seconds: Callable[[Source], float]
    most: float


Do = Callable[[list[Job], Check], list[float | Apnet2Error]]


@dataclass(frozen=True)
class Done:
    """What became of the jobs.

    Attributes:
        n_files: How many were done.
        n_failed: How many were not.
        audio: Length of what was done in seconds.
        elapsed: How long it took in seconds.
    """

    n_files: int
    n_failed: int
    audio: float
    elapsed: float

    def __str__(self) -> str:
        files = "1 file" if self.n_files == 1 else f"{self.n_files} files"
        speed = f"{self.audio / self.elapsed:.1f} times real time"
        return f"{files}, {self.audio:.1f} s of audio in {self.elapsed:.1f} s, {speed}"


def plan(
    inputs: list[str], output: str, readable: tuple[str, ...], writable: tuple[str, ...], suffix: str | None = None
) -> list[Job]:
    """Which files are to be read, and what each becomes.

    Args:
        inputs: Files, folders, or "-" for standard input, which is read here. Of a folder all files that end in one of
            `readable` are taken, sub-folders included; the others are named in the log.
        output: The file, or "-" for standard output. It is a folder if it is one already, ends in "/", or if there are
            several inputs or folders; it mirrors what is in the folders then.
        readable: The suffixes that are taken from folders.
        writable: The suffixes that may be written.
        suffix: That of the files in a folder and of standard output; by default the first of `writable`. A single
            file's name has its own.

    Raises:
        DataError: if there is nothing to read.
        OutputError: if the output is of the wrong kind, or a file that is read would be overwritten.
    """
    inputs = list(dict.fromkeys(inputs))
    missing = [name for name in inputs if name != STANDARD and not os.path.exists(name)]
    if len(missing) == len(inputs):
        raise DataError(f"{', '.join(missing)}: no such file or folder")
    folders = [name for name in inputs if os.path.isdir(name)]
    default = suffix or writable[0]
    if output == STANDARD:
        if len(inputs) > 1 or folders:
            raise OutputError("standard output takes one file; for several, expected a folder to write to")
        standard_output()
        return [Job(_source(inputs[0]), None, default)]
    target = Path(output)
    if len(inputs) == 1 and not folders and not (target.is_dir() or output.endswith(os.sep)):
        return _refuse_overwriting([_single(_source(inputs[0]), target, writable, suffix)])
    if not target.is_dir() and (target.exists() or has_suffix(target, writable) and not output.endswith(os.sep)):
        raise OutputError(f"{target}: names a file; for several inputs or a folder, expected a folder to write to")
    pairs = []
    for name in inputs:
        pairs += _in_folder(Path(name), target, readable) if name in folders else [(_source(name), _stem(name))]
    jobs = [Job(source, target / path.with_name(f"{path.name}{default}"), default) for source, path in pairs]
    return _refuse_overwriting(_refuse_repeated(jobs))


def standard_input() -> BinaryIO:
    """What is read from.

    Raises:
        DataError: if it is closed.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed, expected a file there (< IN) or a program (PROGRAM |)")
    return sys.stdin.buffer


def standard_output() -> BinaryIO:
    """What is written to.

    Raises:
        OutputError: if it is closed or a terminal.
    """
    if sys.stdout is None or sys.stdout.isatty():
        state = "closed" if sys.stdout is None else "a terminal"
        raise OutputError(f"standard output is {state}, expected a file (> OUT) or a program (| PROGRAM)")
    return sys.stdout.buffer


def is_regular_file(stream: BinaryIO) -> bool:
    """Whether it is a file on a disk, which nobody waits for to be filled."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # a stream that a program has put in its place
        return False


def _source(name: str) -> Source:
    path = Path(name)
    if name == STANDARD:
        return StandardInput(standard_input().read())
    return StandardInput(path.read_bytes(), name) if path.is_fifo() else path


def _stem(name: str) -> Path:
    return Path("stdin" if name == STANDARD else Path(name).stem)


def _single(source: Source, target: Path, writable: tuple[str, ...], suffix: str | None) -> Job:
    own = target.suffix.lower()
    if own not in writable:
        hint = "or a folder: one that exists, or a name that ends in /"
        raise OutputError(f"{target}: expected the name of a {', '.join(writable)} file to write, {hint}")
    if target.exists() and not target.is_file():  # a named pipe would be replaced, and its reader wait for ever
        raise OutputError(f"{target}: is no regular file, expected one, or - for standard output")
    if suffix not in (None, own):
        raise OutputError(f"{target}: has the suffix {own}, but {suffix} was asked for; leave one out")
    return Job(source, target, own)


def _in_folder(source: Path, target: Path, readable: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """The files in a folder, and their paths below it without the suffix."""
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise OutputError(f"{target}: lies in {source}, which is read; choose a folder outside of it")
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    taken = [path for path in files if has_suffix(path, readable)]
    if not taken:
        raise DataError(f"{source}: no {', '.join(readable)} file in this folder")
    if others := [str(path.relative_to(source)) for path in files if not has_suffix(path, readable)]:
        names = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        logger.warning("%s: %d left out, by their suffixes other kinds of files: %s", source, len(others), names)
    return [(path, path.relative_to(source).with_suffix("")) for path in taken]


def _refuse_repeated(jobs: list[Job]) -> list[Job]:
    repeated, times = Counter(job.target for job in jobs).most_common(1)[0]
    if times > 1:
        names = " and ".join(str(job.source) for job in jobs if job.target == repeated)
        raise DataError(f"{names} would all become {repeated}; give one of them at a time")
    return jobs


def _refuse_overwriting(jobs: list[Job]) -> list[Job]:
    read = {os.path.realpath(job.source) for job in jobs if isinstance(job.source, Path)}
    if overwritten := read & {os.path.realpath(job.target) for job in jobs}:
        raise OutputError(f"{min(overwritten)}: is an input and would be overwritten; choose another output")
    return jobs


def without_existing(jobs: list[Job]) -> list[Job]:
    """The jobs whose file is not there yet; a line in the log counts the others."""
    left = [job for job in jobs if job.target is None or not job.target.exists()]
    if len(left) < len(jobs):
        logger.warning("%d of %d files are there already and are left as they are", len(jobs) - len(left), len(jobs))
    return left


def run(jobs: list[Job], do: Do, sharing: Sharing | None = None) -> Done:
    """Do all jobs; those that cannot be done are named in the log and left out.

    Args:
        jobs: What `plan` gives.
        do: Does one, or several at once. It gives, for each, the length of its audio in seconds, or why it could not be
            done. Its second argument is to be called now and then; it raises if all is to end.
        sharing: How threads share the jobs; by default they are done in order, one by one.

    Raises:
        OutputError: if a file cannot be written; there is no part of it then, and the rest is not tried.
    """
    start = time.perf_counter()

    def do_share(share, check):
        return list(zip(share, do([jobs[i] for i in share], check), strict=True))

    if sharing:
        outcomes = in_threads(do_share, _shares(jobs, sharing), sharing.n_threads, IN_MEMORY)
    else:
        outcomes = (do_share([i], go_on) for i in range(len(jobs)))
    results: list[float | Apnet2Error | None] = [None] * len(jobs)
    n_reported = 0  # in the order of the jobs
    with closing(outcomes), tqdm(total=len(jobs), unit="file", disable=None if len(jobs) > 1 else True) as bar:
        for i, result in chain.from_iterable(outcomes):
            results[i] = result
            bar.update()
            while n_reported < len(jobs) and results[n_reported] is not None:
                if isinstance(results[n_reported], Apnet2Error):
                    logger.error("%s", results[n_reported])
                n_reported += 1
    lengths = [result for result in results if not isinstance(result, Apnet2Error)]
    return Done(len(lengths), len(jobs) - len(lengths), sum(lengths), time.perf_counter() - start)


def _shares(jobs: list[Job], sharing: Sharing) -> Iterator[tuple[list[int], float]]:
    """The numbers of jobs of like lengths, and how long they are together if all are as long as the longest of them."""
    for start in range(0, len(jobs), WINDOW):
        window = range(start, min(start + WINDOW, len(jobs)))
        lengths = {i: sharing.seconds(jobs[i].source) for i in window}
        most = min(sharing.most, sum(lengths.values()) / sharing.n_threads)
        share, longest = [], 0.0
        for i in sorted(window, key=lengths.get, reverse=True):  # or the longest might keep one thread busy at the end
            if share and longest * (len(share) + 1) > most:
                yield share, longest * len(share)
                share = []
            longest = longest if share else lengths[i]
            share.append(i)
        yield share, longest * len(share)


def write(job: Job, encode: Callable[[BinaryIO], None]) -> None:
    """Write what `encode` makes, whole or not at all, to the job's file, whose folder is made, or to standard output.

    Raises:
        OutputError: if it cannot be written.
        BrokenPipeError: if nobody reads standard output any more.
    """
    content = io.BytesIO()
    with writing(job.target):
        encode(content)
        if job.target is None:
            sys.stdout.buffer.write(content.getvalue())
            sys.stdout.buffer.flush()
        else:
            target = Path(os.path.realpath(job.target))  # of a link the file that it names, as other programs do
            write_atomically(target, lambda temporary: temporary.write_bytes(content.getvalue()))


@contextmanager
def writing(target: Path | None) -> Iterator[None]:
    """Whatever goes wrong while a file, or standard output, is written is an `OutputError` or `BrokenPipeError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"{target or 'standard output'}: cannot be written ({reason})") from error
