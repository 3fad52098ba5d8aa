"""Files of a model repository of Hugging Face, by the library that caches them, resumes and shows progress."""

import re
from pathlib import Path, PurePosixPath
from typing import NoReturn

from huggingface_hub import HfApi, errors
from huggingface_hub.utils import logging

from apnet2_tts_plugin.errors import DownloadError, MissingFileError, one_line
from apnet2_tts_plugin.weights.find import CONFIG_NAME, choose_weights

ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/\w+|[^/@]+))?(?:/(?P<path>.*))?"
)
OFFICIAL = re.compile(r"g_\d+")  # generators of the official code
TIMEOUT_S = 30.0


def fetch(address: str) -> tuple[Path, Path | None, Path | None]:
    """The weights in a repository, and the `config.json` and the `README.md` beside them if there are any.

    Args:
        address: `hf://OWNER/REPOSITORY[@REVISION][/PATH]`, as `huggingface_hub` writes it. The path is that of the
            weights, or of the folder they lie in: its `model.safetensors`, or else its checkpoint, as in
            `find_weights`, or else its only official generator.

    Returns:
        Files in the library's cache, all of one commit.

    Raises:
        MissingFileError: if there is no such repository, revision or path.
        DownloadError: if the address makes no sense, the weights cannot be told, or the files cannot be had.
    """
    parsed = ADDRESS.fullmatch(address)
    if parsed is None:
        raise DownloadError(f"{address}: expected hf://OWNER/REPOSITORY, hf://OWNER/REPOSITORY/FILE or with @REVISION")
    api = HfApi(library_name="apnet2-tts-plugin")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no words about tokens and each further try
    try:
        info = api.model_info(parsed["repo"], revision=parsed["revision"], timeout=TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
        weights = PurePosixPath(_choose(names, (parsed["path"] or "").strip("/"), address))
        wanted = weights.with_name(CONFIG_NAME), weights.with_name("README.md"), weights  # the long one last

        def get(path: PurePosixPath) -> Path | None:
            if str(path) not in names:
                return None
            return Path(api.hf_hub_download(parsed["repo"], str(path), revision=info.sha))

        config, readme, file = map(get, wanted)
        return file, config, readme
    except Exception as error:  # of whatever HTTP library it uses
        _explain(error, address, parsed["repo"])
    finally:
        logging.set_verbosity(verbosity)


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


def _explain(error: Exception, address: str, repo: str) -> NoReturn:
    if isinstance(error, DownloadError):
        raise error
    if isinstance(error, errors.GatedRepoError):
        raise DownloadError(f"{address}: ask for access at huggingface.co/{repo}, then run hf auth login") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = "no such model repository, or a private one; hf auth login opens yours"
        raise MissingFileError(f"{address}: {reason}") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise MissingFileError(f"{address}: the repository has no such revision") from error
    if isinstance(error, errors.OfflineModeIsEnabled):
        raise DownloadError(f"{address}: HF_HUB_OFFLINE is set; unset it, or give a folder or a file") from error
    if isinstance(error, (errors.HfHubHTTPError, errors.HFValidationError)):
        raise DownloadError(f"{address}: {one_line(error)}") from error
    raise DownloadError(f"{address}: {one_line(error)}; is this machine online?") from error
