"""The commands of `apnet2` that turn files into files: recordings and mels into waveforms, recordings into mels."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

from apnet2_tts_plugin.cli_shared import DEVICE, fail, natural_number, positive
from apnet2_tts_plugin.errors import Apnet2Error

RUNTIMES = ("auto", "eager", "packed", "bfloat16", "int8")  # those of `network.runtime`, which needs torch

VOCODE = """\
Vocode files with a model. Each IN is one of:

  a recording           analysed to the model's mel and vocoded (copy
                        synthesis); the output has as many samples. All formats
                        that libsndfile reads will do, such as WAV, FLAC, MP3,
                        Ogg and AIFF, and those of FFmpeg where it is installed
  an .npy or .pt file   a natural-log mel (bands, frames) or (1, bands, frames)
                        with the model's analysis settings, its frames centred
                        at multiples of the hop (see --framing for others); with
                        --tts, a mel as that acoustic model has it
  a folder              all such files in it and its sub-folders, which OUT
                        mirrors
  -                     standard input: any of these files; .npy files in a row
                        are one mel in pieces

OUT is the file to write, in the format of its name: .wav, .flac, .mp3, .ogg,
.opus, .aiff and others. It is a folder if it exists as one, ends in /, or there
are several inputs; or - for standard output. The output is mono, of 16 bits, at
the model's sample rate, as loud as the model makes it, but scaled down where
its peak would be cut. It takes its name only when it is complete; an existing
file is replaced. Files that cannot be vocoded are named and skipped, and the
exit status is 1 at the end.

From - to -, a pipe, WAV, .npy and --raw are vocoded while they arrive: the
header tells no length, and what exceeds full scale is clipped. A model that
pools over the sentence (not the bundled ones) vocodes windows that overlap."""

VOCODE_EXAMPLES = """\
examples:
  apnet2 vocode recording.wav vocoded.flac
  apnet2 vocode *.wav vocoded/ --format mp3 --skip-existing
  apnet2 vocode mels/ wavs/ --model my_model --tts my_tts/config.json
  ffmpeg -i film.mkv -f wav - | apnet2 vocode - - | sox - -n stats
  arecord -t raw -f S16_LE -r 22050 | apnet2 vocode - - --raw \\
      | aplay -f S16_LE -r 22050
"""

MEL = """\
Write the natural-log mels of recordings, as a model analyses them, to .npy
files of shape (bands, frames) in float32: what `apnet2 vocode` makes of such a
file is what it makes of the recording, but that it refuses mels that could be
in log10 or normalised, as those of steady noise at full scale. IN and OUT are
as for `apnet2 vocode`.
"""

MEL_EXAMPLES = """\
examples:
  apnet2 mel recording.wav recording.npy
  apnet2 mel recordings/ mels/ --model my_model
"""

BESIDE_DEVICE = 4  # threads that read and write while another device than the processor vocodes


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to a parser by `add(name, run, summary, description, epilog)`."""
    vocode = add("vocode", _vocode, "vocode recordings, mels or folders of them", VOCODE, VOCODE_EXAMPLES)
    _add_files(vocode, "recordings, .npy or .pt files, folders of them, or - for standard input")
    vocode.add_argument("--device", default="auto", help=DEVICE)
    vocode.add_argument(
        "--tts",
        metavar="CONFIG",
        help="the mels are in this acoustic model's scale, and converted: its config.json, its folder, or the name of "
        "a model that coqui-tts has downloaded",
    )
    vocode.add_argument(
        "--iterations",
        type=natural_number,
        metavar="N",
        help="iterations behind the networks, towards the mel, or by fast Griffin-Lim towards the predicted "
        "amplitude, whichever the model has (as the model says)",
    )
    vocode.add_argument(
        "--runtime",
        choices=RUNTIMES,
        metavar="NAME",
        help="how it computes: eager, packed, bfloat16, int8 (docs/runtimes.md), or auto: packed or eager (auto)",
    )
    vocode.add_argument(
        "--framing",
        choices=("centred", "hifigan"),
        default="centred",
        help="frames of mels are centred at multiples of the hop, or as in HiFi-GAN and Matcha-TTS (%(default)s)",
    )
    vocode.add_argument("--normalize", action="store_true", help="scale each output to a peak of 1 dB below full scale")
    vocode.add_argument(
        "--format",
        type=_suffix,
        metavar="SUFFIX",
        help="format of the files in a folder and of standard output: wav, flac, mp3, ogg, opus, ... (wav); raw, for "
        "standard output alone, is 16-bit little-endian samples without a header",
    )
    vocode.add_argument(
        "--raw",
        action="store_true",
        help="for - -: standard input has no header, 16-bit little-endian samples of one channel at the model's rate; "
        "standard output likewise, unless --format is given",
    )

    mel = add("mel", _mel, "write the mels of recordings", MEL, MEL_EXAMPLES)
    _add_files(mel, "recordings, folders of them, or - for standard input")


def _add_files(command: argparse.ArgumentParser, inputs: str) -> None:
    """The arguments of a command that turns recordings into files."""
    command.usage = f"{command.prog} [options] IN [IN ...] OUT"
    command.add_argument("paths", metavar="IN ... OUT", nargs="+", help=f"{inputs}; last, the file or folder to write")
    command.add_argument(
        "--model", metavar="NAME_OR_DIR", default="apnet2", help="a name from `apnet2 list`, or a folder (%(default)s)"
    )
    command.add_argument(
        "--no-resample", action="store_true", help="refuse recordings of other sample rates instead of converting them"
    )
    command.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="threads to share the files, which vocode short ones in batches; 1: file by file (as many as "
        "processors; 4 beside a GPU)",
    )
    command.add_argument("--skip-existing", action="store_true", help="leave files alone that are there already")


def _suffix(text: str) -> str:
    from apnet2_tts_plugin.audio import FORMATS, RAW

    suffix = f".{text.lower().removeprefix('.')}"
    if suffix not in (*FORMATS, RAW):
        raise argparse.ArgumentTypeError(f"{text!r}, expected one of {', '.join((*FORMATS, RAW))}")
    return suffix


def _vocode(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import audio, batch, vocode

    if arguments.tts and arguments.framing != "centred":
        arguments.command.error("--framing hifigan: leave it out, frames of mels for --tts are centred")
    if arguments.format == audio.RAW and arguments.paths[-1] != batch.STANDARD:
        arguments.command.error("--format raw: is for standard output")
    if _is_piped(arguments):
        return _vocode_piped(arguments)
    readable = (*audio.SUFFIXES, *vocode.FEATURE_SUFFIXES)
    return _vocode_files(arguments, _jobs(arguments, readable, tuple(audio.FORMATS), arguments.format))


def _is_piped(arguments: argparse.Namespace) -> bool:
    """Whether standard input is to be vocoded while it arrives."""
    from apnet2_tts_plugin import audio, batch

    is_piped = arguments.paths == [batch.STANDARD, batch.STANDARD]
    needs_whole = arguments.normalize or arguments.tts or arguments.framing != "centred"
    if needs_whole or not is_piped or arguments.format not in (None, ".wav", audio.RAW):
        if arguments.raw:
            others = "none of --normalize, --tts, --framing and formats but wav and raw"
            arguments.command.error(f"--raw: expected - - as IN and OUT, and {others}")
        return False
    return arguments.raw or not batch.is_regular_file(batch.standard_output())


def _vocode_piped(arguments: argparse.Namespace) -> int:
    from apnet2_tts_plugin import audio, batch, piped

    suffix = arguments.format or (audio.RAW if arguments.raw else ".wav")
    out = batch.standard_output()
    given = piped.open_input(batch.standard_input(), arguments.raw, not arguments.no_resample)
    if isinstance(given, audio.StandardInput):
        return _vocode_files(arguments, [batch.Job(given, None, suffix)])
    model, runtime = _load(arguments)
    return _report(piped.vocode_stream(model, given, out, suffix == audio.RAW), "vocoded", f", runtime {runtime}")


def _vocode_files(arguments: argparse.Namespace, jobs: list) -> int:
    from apnet2_tts_plugin import audio, batch, loader, vocode

    if not jobs:
        return 0
    (model, runtime), pairing = _load(arguments), None
    if arguments.framing != "centred" and model.config.input_features != "mel":
        return fail("--framing hifigan is for mels, and this model vocodes the latents of a VITS", 2)
    if arguments.tts:
        tts_config = loader.read_acoustic_config(arguments.tts)
        pairing = vocode.pairing_for_mels(tts_config, loader.audio_processor(tts_config), model.config)
    options = not arguments.no_resample, pairing, arguments.framing, arguments.normalize
    vocoder = vocode.FileVocoder(model, *options, progress=len(jobs) == 1)
    rate = model.config.audio.sample_rate

    def write(job, waveform):
        if isinstance(waveform, Apnet2Error):
            return waveform
        batch.write(job, lambda file: audio.encode(file, waveform.numpy(), rate, job.suffix))
        return len(waveform) / rate

    def do(some, check):
        return list(map(write, some, vocoder.several([job.source for job in some], check)))

    most = vocode.BATCH.get(model.device.type, 0.0)
    sharing = _sharing(arguments.jobs, jobs, model.config, most, model.device.type)
    return _report(batch.run(jobs, do, sharing), "vocoded", f", runtime {runtime}")


def _load(arguments: argparse.Namespace) -> tuple:
    """The model, and the name of its runtime."""
    from apnet2_tts_plugin import loader

    model = loader.load_model(arguments.model, arguments.device)
    model.set_iterations(arguments.iterations)
    name = arguments.runtime or os.environ.get("APNET2_RUNTIME") or model.config.runtime or "auto"
    return model, model.use_runtime(name)


def _mel(arguments: argparse.Namespace) -> int:
    import numpy as np

    from apnet2_tts_plugin import audio, batch, loader, vocode, workers

    jobs = _jobs(arguments, audio.SUFFIXES, (".npy",))
    if not jobs:
        return 0
    config = loader.read_vocoder_config(arguments.model)
    log_mel = vocode.mel_analysis(config)

    def analyse(job):
        mel = vocode.analyse_file(log_mel, config.audio, job.source, not arguments.no_resample)
        batch.write(job, lambda file: np.save(file, mel))
        return (mel.shape[1] - 1) * config.audio.hop_length / config.audio.sample_rate

    def do(some, check):
        return [workers.attempt(analyse, job) for job in some]

    return _report(batch.run(jobs, do, _sharing(arguments.jobs, jobs, config, 0.0)), "analysed")


def _sharing(n_threads: int | None, jobs: list, config, most: float, device: str = "cpu"):
    """How threads share the jobs; None if they are to be done one by one."""
    import torch

    from apnet2_tts_plugin import batch, vocode

    default = torch.get_num_threads() if device == "cpu" else BESIDE_DEVICE
    n_threads = min(n_threads or default, len(jobs))
    seconds = partial(vocode.seconds, config=config)
    return batch.Sharing(n_threads, seconds, most) if n_threads > 1 else None


def _jobs(arguments: argparse.Namespace, readable: tuple, writable: tuple, suffix: str | None = None) -> list:
    """What is to be done for the arguments of `_add_files`."""
    from apnet2_tts_plugin import batch

    *inputs, output = arguments.paths
    if not inputs:
        arguments.command.error("expected IN and OUT")
    jobs = batch.plan(inputs, output, readable, writable, suffix)
    return batch.without_existing(jobs) if arguments.skip_existing else jobs


def _report(done, verb: str, how: str = "") -> int:
    """Say how it went, and return the exit status."""
    if done.n_files:
        print(f"apnet2: {verb} {done}{how}", file=sys.stderr)
    n_jobs = done.n_files + done.n_failed
    if done.n_failed and n_jobs > 1:
        fail(f"{done.n_failed} of {n_jobs} files could not be {verb}")
    return 1 if done.n_failed else 0
