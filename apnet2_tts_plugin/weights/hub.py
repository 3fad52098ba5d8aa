"""Files of a model repository of Hugging Face, by the library that caches them, resumes and shows progress."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, errors
from huggingface_hub.utils import logging

from apnet2_tts_plugin.errors import DownloadError, MissingFileError, one_line, system_reason
from apnet2_tts_plugin.weights.find import CONFIG_NAME, choose_weights

ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/\w+|[^/@]+))?(?:/(?P<path>.*))?"
)
OFFICIAL = re.compile(r"g_\d+")  # generators of the official code
TIMEOUT_S = 30.0


def fetch(address: str) -> Path:
    """The weights in a repository, and beside them its `config.json` and `README.md` if there are any.

    Args:
        address: `hf://OWNER/REPOSITORY[@REVISION][/PATH]`, as `huggingface_hub` writes it. The path is that of the
            weights, or of the folder they lie in: its `model.safetensors`, or else its checkpoint, as in
            `find_weights`, or else its only official generator.

    Returns:
        A file in the library's cache, with those of the same commit only.

    Raises:
        MissingFileError: if there is no such repository, revision or path, or no weights to choose.
        DownloadError: if the address makes no sense, or the files cannot be had.
        OSError: if they cannot be written.
    """
    parsed = ADDRESS.fullmatch(address)
    if parsed is None:
        raise DownloadError(f"{address}: expected hf://OWNER/REPOSITORY, hf://OWNER/REPOSITORY/FILE or with @REVISION")
    repo, api = parsed["repo"], HfApi(library_name="apnet2-tts-plugin")
    with _in_one_line(address, repo):
        info = api.model_info(repo, revision=parsed["revision"], timeout=TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
        weights = PurePosixPath(_choose(names, (parsed["path"] or "").strip("/"), address))
        for path in (weights.with_name(CONFIG_NAME), weights.with_name("README.md")):
            if str(path) in names:
                api.hf_hub_download(repo, str(path), revision=info.sha)
        return Path(api.hf_hub_download(repo, str(weights), revision=info.sha))


def _choose(names: list[str], path: str, address: str) -> str:
    """The weights at `path`, which is a file or a folder of the repository."""
    if path in names:
        return path
    inside = [name for name in names if str(PurePosixPath(name).parent) == (path or ".")]
    short = [PurePosixPath(name).name for name in inside]
    generators = [name for name in short if OFFICIAL.fullmatch(name)]
    chosen = choose_weights(short) or (generators[0] if len(generators) == 1 else None)
    if chosen is None:
        found = ", ".join(sorted(name for name in names if name.startswith(path))[:8]) or "nothing"
        raise MissingFileError(f"{address}: no weights to choose, found {found}; add the path of the file")
    return str(PurePosixPath(path, chosen))


@contextmanager
def _in_one_line(address: str, repo: str) -> Iterator[None]:
    """Turn the library's errors into ours, and let it say nothing itself about tokens and each further try."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except DownloadError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(f"{address}: ask for access at huggingface.co/{repo}, then run hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        reason = "no such model repository, or a private one; hf auth login opens yours"
        raise MissingFileError(f"{address}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(f"{address}: the repository has no such revision") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(f"{address}: HF_HUB_OFFLINE is set; unset it, or give a folder or a file") from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise DownloadError(f"{address}: {one_line(error)}") from error
    except Exception as error:  # of whatever HTTP library it uses
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine: the disk is full
        reason = f"no connection to Hugging Face ({system_reason(error)}); is this machine online?"
        raise DownloadError(f"{address}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
