"""The errors of this package. Each message is one line that names the value, what was expected and what to do."""


class Apnet2Error(Exception):
    """Base of all of them: a mistake of a user, a file or a machine, not of this code."""


class ConfigError(Apnet2Error, ValueError):
    """A setting that cannot work."""


class DataError(Apnet2Error, ValueError):
    """A recording, mel or latent that cannot be used, or a corpus of them."""


class OutputError(Apnet2Error, ValueError):
    """A file cannot be written where it was asked for."""


class CheckpointError(Apnet2Error, ValueError):
    """A file of weights that cannot be used."""


class DamagedError(CheckpointError):
    """A file of weights that is not as it was written."""


class DownloadError(Apnet2Error, RuntimeError):
    """A file or repository elsewhere that cannot be had."""


class MissingFileError(DownloadError):
    """There is nothing at an address."""


class ModelError(Apnet2Error, ValueError):
    """A model cannot be loaded, installed or removed."""


class ModelNotFoundError(ModelError):
    """No model has this name."""


class PairingError(Apnet2Error, ValueError):
    """An acoustic model's output cannot be vocoded."""


class FinetuningError(Apnet2Error, ValueError):
    """What an acoustic model or a VITS gives for recordings cannot be had or kept."""


class MetricError(Apnet2Error, ValueError):
    """A metric that cannot be computed from these waveforms."""


class MissingPackageError(Apnet2Error, ImportError):
    """An optional package is not installed."""


class LaunchError(Apnet2Error, RuntimeError):
    """Processes that cannot train one model together."""


class DivergedError(Apnet2Error, RuntimeError):
    """A run whose losses or gradients are no longer finite."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an error of another library says, as one line of at most `limit` characters; its type if that is nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def system_reason(error: BaseException) -> str:
    """What the operating system said, somewhere behind an error of another library; if it did not, as `one_line`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error)
