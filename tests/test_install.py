"""`apnet2 install` from a web server of this machine: whole models, or one line and nothing."""

import hashlib
import json
import logging
import math
import shutil
import socket
import threading
import time
from pathlib import Path

import command_line
import pytest
import requests
import tiny
import torch
import tqdm
from command_line import files, one_line
from web_server import COMMIT, web_server
from weight_files import is_same, save_checkpoint

from apnet2_tts_plugin import loader
from apnet2_tts_plugin.errors import DownloadError
from apnet2_tts_plugin.weights import download, store

workplace, apnet2 = command_line.workplace, command_line.apnet2  # fixtures
WEIGHTS = "/m/model.safetensors"
CONFIG = "/m/config.json"


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server that has a model under /m, and no waiting between tries."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with web_server() as server:
        server.put_folder(tiny.save(tmp_path / "m", loudness=1.0), "/m")
        yield server


@pytest.fixture
def hub(web, tmp_path, monkeypatch):
    """The server as Hugging Face, without repositories so far."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", web.url(""))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", web.url(""))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return web


def home() -> list[str]:
    """All files in the data folder, those of unfinished downloads included."""
    folder = store.data_folder()
    return files(folder) if folder.is_dir() else []


def installed(name: str) -> list[str]:
    folder = f"vocoder_models--universal--unknown--{name}"
    return [f"{folder}/config.json", f"{folder}/model.safetensors"]


def is_louder(name: str) -> bool:
    """Whether the model of this name is the one under /m."""
    return is_same(loader.load_model(name).generator, tiny.generator(1.0).state_dict())


def refused(result: tuple, *reasons: str) -> None:
    """The command said why in one line, and nothing is installed or left of it."""
    status, out, err = result
    assert (status, out) == (1, "")
    for reason in reasons:
        assert reason in one_line(err)
    assert home() == []


def interrupted(result: tuple, web, reason: str) -> int:
    """The command failed with the beginning of the weights kept, and no more; how many bytes."""
    status, out, err = result
    assert (status, out) == (1, "") and reason in one_line(err) and web.url(WEIGHTS) in err
    (part,) = store.data_folder().glob(".apnet2-downloads/*/part")
    assert web.files[WEIGHTS].startswith(part.read_bytes())
    assert store.names() == {} and not list(store.data_folder().glob("*.safetensors"))
    return part.stat().st_size


def test_model(web, apnet2):
    status, out, err = apnet2("install", web.url(WEIGHTS), "--name", "mine")
    assert (status, err) == (0, "") and "--vocoder_name mine" in out
    assert home() == installed("mine")
    assert Path(store.resolve("mine"), "model.safetensors").read_bytes() == web.files[WEIGHTS]
    assert web.asked == [(CONFIG, 0), (WEIGHTS, 0)]


def test_file_here(apnet2, tmp_path):
    folder = tiny.save(tmp_path / "m", loudness=1.0)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert apnet2("install", folder / "other.safetensors")[0] == 0
    assert is_louder("apnet2") and home() == installed("apnet2")
    assert files(folder) == ["config.json", "other.safetensors"]


def official(web, path: Path, settings: dict | None = None) -> str:
    """Serve an official generator, with its `config.json` if there are settings."""
    torch.save(tiny.official_generator(), path)
    web.files["/o/g_00000007"] = path.read_bytes()
    if settings is not None:
        web.files["/o/config.json"] = json.dumps(settings).encode()
    return web.url("/o/g_00000007")


SETTINGS = dict(sampling_rate=16000, n_fft=1024, hop_size=256, win_size=1024, num_mels=80, fmin=0, fmax=8000)


def test_official_generator(web, apnet2, tmp_path):
    url = official(web, tmp_path / "g", SETTINGS)
    assert apnet2("install", url, "--name", "official")[::2] == (0, "")
    model = loader.load_model("official")
    assert is_same(model.generator, tiny.generator().state_dict()) and model.config.audio.sample_rate == 16000
    assert home() == installed("official")


def test_official_generator_without_settings(web, apnet2, tmp_path):
    url = official(web, tmp_path / "g")
    status, _, err = apnet2("install", url, "--name", "official")
    assert status == 0 and "no config.json beside it, so it gets the settings of LJSpeech" in one_line(err)
    assert loader.load_model("official").config.audio.sample_rate == 22050
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SETTINGS))
    assert apnet2("install", url, "--name", "official", "--config", config)[::2] == (0, "")
    assert loader.load_model("official").config.audio.sample_rate == 16000


def test_checkpoint_of_the_trainer(web, apnet2, tmp_path):
    checkpoint = save_checkpoint(tiny.model(output_path="/home/somebody"), tmp_path / "best_model.pth")
    web.files["/run/best_model.pth"] = checkpoint.read_bytes()
    assert apnet2("install", web.url("/run/best_model.pth?download=1"), "--name", "run")[::2] == (0, "")
    assert is_same(loader.load_model("run").generator, tiny.model().generator.state_dict())
    assert home() == installed("run") and "somebody" not in Path(store.resolve("run"), "config.json").read_text()


def test_broken_connection_is_taken_up_again(web, apnet2):
    web.most = math.ceil(len(web.files[WEIGHTS]) / 4)
    assert apnet2("install", web.url(WEIGHTS))[::2] == (0, "")
    assert is_louder("apnet2") and home() == installed("apnet2")
    starts = [start for path, start in web.asked if path == WEIGHTS]
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) > 2


def test_truncated_then_gone_on_with(web, apnet2, monkeypatch):
    monkeypatch.setattr(download, "N_TRIES", 1)
    web.most = 100_000
    kept = interrupted(
        apnet2("install", web.url(WEIGHTS)), web, "the connection broke off; run it again to go on after"
    )
    assert 0 < kept <= web.most
    web.most = None
    assert apnet2("install", web.url(WEIGHTS))[::2] == (0, "")
    assert web.asked[-1] == (WEIGHTS, kept)
    assert is_louder("apnet2") and home() == installed("apnet2")


def test_truncated_without_a_version(web, apnet2):
    """What cannot be gone on with is not kept."""
    web.most, web.versions = 100_000, False
    refused(apnet2("install", web.url(WEIGHTS)), WEIGHTS, "the connection broke off\n")


def test_truncated_and_not_counted(web, apnet2, monkeypatch):
    """urllib3 1, which requests still takes, does not compare what came with the length that was announced."""
    send = requests.adapters.HTTPAdapter.send

    def send_as_of_old(*arguments, **options):
        response = send(*arguments, **options)
        response.raw.enforce_content_length = False
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_as_of_old)
    web.most, web.versions = 100_000, False
    refused(apnet2("install", web.url(WEIGHTS)), WEIGHTS, "the connection broke off\n")


def test_ctrl_c_then_gone_on_with(web, apnet2, monkeypatch):
    def update(bar, n):
        if bar.desc == "model.safetensors" and bar.n > 100_000:
            raise KeyboardInterrupt
        return advance(bar, n)

    advance = tqdm.tqdm.update
    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", update)
        patch.setattr(download.tqdm, "__init__", shown(download.tqdm.__init__))
        status, out, err = apnet2("install", web.url(WEIGHTS))
    assert (status, out) == (130, "") and "interrupted" in err and store.names() == {}
    assert apnet2("install", web.url(WEIGHTS))[0] == 0
    assert web.asked[-1][1] > 100_000 and is_louder("apnet2")


def shown(init):
    """`init` of a progress bar, as on a terminal."""
    return lambda *args, **options: init(*args, **options | {"disable": False})


def test_progress_bar(web, apnet2, monkeypatch):
    monkeypatch.setattr(download.tqdm, "__init__", shown(download.tqdm.__init__))
    err = apnet2("install", web.url(WEIGHTS))[2]
    assert "model.safetensors: 100%" in err or "model.safetensors:   0%" in err


def test_changed_since_then(web, apnet2, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "N_TRIES", 1)
    web.most = 100_000
    assert apnet2("install", web.url(WEIGHTS))[0] == 1
    web.most = None
    web.put_folder(tiny.save(tmp_path / "new"), "/m")
    assert apnet2("install", web.url(WEIGHTS))[0] == 0
    assert web.asked[-1][1] > 0  # for the rest, and the server gave all
    assert Path(store.resolve("apnet2"), "model.safetensors").read_bytes() == web.files[WEIGHTS]


def test_whole_but_not_taken(web, tmp_path):
    """A process that was killed with the last byte written: the server has nothing more to give."""
    parts = tmp_path / "parts"
    with pytest.raises(FileNotFoundError):
        download.download(web.url(WEIGHTS), tmp_path / "nowhere" / "file", parts)
    assert len(files(parts)) == 3
    download.download(web.url(WEIGHTS), tmp_path / "file", parts)
    assert [start for _, start in web.asked] == [0, len(web.files[WEIGHTS]), 0]
    assert (tmp_path / "file").read_bytes() == web.files[WEIGHTS] and files(parts) == []


def test_another_part_than_asked_for(web, apnet2):
    web.most, web.shift = 100_000, 1
    refused(apnet2("install", web.url(WEIGHTS)), "the server sends another part than it was asked for")
    web.most = None
    assert apnet2("install", web.url(WEIGHTS))[0] == 0 and is_louder("apnet2")


def test_stalled(web, apnet2, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(download, "N_TRIES", 2)
    web.most, web.stalls = 100_000, True
    kept = interrupted(apnet2("install", web.url(WEIGHTS)), web, "nothing came for 0.2 seconds; run it again")
    assert kept > web.most  # of two tries


def test_stalled_at_once(web, apnet2, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    web.most, web.stalls = 0, True
    refused(apnet2("install", web.url(WEIGHTS)), "nothing came for 0.2 seconds")
    assert len(web.asked) == 1  # a try that brings nothing is the last


def test_slow(web, apnet2, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.5)
    web.pause = 0.02  # for each of about 50 pieces
    assert apnet2("install", web.url(WEIGHTS))[::2] == (0, "")
    assert is_louder("apnet2")


def test_checksum(web, apnet2):
    digest = hashlib.sha256(web.files[WEIGHTS]).hexdigest()
    wrong = hashlib.sha256(web.files[CONFIG]).hexdigest()
    refused(apnet2("install", web.url(WEIGHTS), "--sha256", wrong), f"is {digest}, expected {wrong}")
    assert apnet2("install", web.url(WEIGHTS), "--sha256", digest.upper())[0] == 0
    status, _, err = apnet2("install", web.url(WEIGHTS), "--sha256", "abc")
    assert status == 2 and "argument --sha256: 'abc', expected 64 hexadecimal digits" in one_line(err)


def test_checksum_of_a_folder(apnet2, tmp_path):
    folder = tiny.save(tmp_path / "m")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert apnet2("install", folder, "--sha256", digest)[0] == 0
    assert apnet2("remove", "apnet2")[0] == 0
    refused(apnet2("install", folder, "--sha256", "0" * 64), "expected 0000")


def test_web_page_instead(web, apnet2):
    web.files[WEIGHTS] = b"<!DOCTYPE html><title>Sign in</title>"
    refused(apnet2("install", web.url(WEIGHTS)), web.url(WEIGHTS), "not a readable file of weights")
    web.types[WEIGHTS] = "text/html; charset=utf-8"
    refused(apnet2("install", web.url(WEIGHTS)), "a web page, expected a file")


def test_web_page_instead_of_the_configuration(web, apnet2):
    web.files[CONFIG], web.types[CONFIG] = b"<!DOCTYPE html>", "text/html"
    refused(apnet2("install", web.url(WEIGHTS)), "no config.json beside it", "--config")
    assert (WEIGHTS, 0) not in web.asked


def test_configuration_of_something_else(web, apnet2):
    web.files[CONFIG] = b'{"model": "hifigan"}'
    refused(apnet2("install", web.url(WEIGHTS)), "its config.json is not of an APNet2")
    assert (WEIGHTS, 0) not in web.asked


def test_damaged(web, apnet2):
    web.files[WEIGHTS] = web.files[WEIGHTS][:5000]
    refused(apnet2("install", web.url(WEIGHTS)), web.url(WEIGHTS), "not a readable file of weights")


def test_weights_of_other_sizes(web, apnet2):
    settings = json.loads(web.files[CONFIG])
    settings["phase"]["channels"] = 24
    web.files[CONFIG] = json.dumps(settings).encode()
    err = apnet2("install", web.url(WEIGHTS))
    refused(err, web.url(WEIGHTS), "is (16, 80, 7), expected (24, 80, 7)")
    assert str(store.data_folder()) not in err[2]


def test_file_of_something_else(web, apnet2, tmp_path):
    torch.save(tiny.official_discriminators(tiny.config()), tmp_path / "do")
    web.files["/o/do_00000007"] = (tmp_path / "do").read_bytes()
    refused(apnet2("install", web.url("/o/do_00000007")), "holds mpd, mrd, steps, epoch; expected a checkpoint")
    torch.save({"model": {}, "config": {"model": "hifigan"}}, tmp_path / "other")
    web.files["/o/other.pth"] = (tmp_path / "other").read_bytes()
    refused(apnet2("install", web.url("/o/other.pth")), "no configuration of APNet2 in it")
    refused(apnet2("install", web.url("/o/other.pth"), "--config", tmp_path / "m/config.json"), "leave --config away")


def test_pickle_that_would_run_code(web, apnet2, tmp_path):
    torch.save({"generator": Path}, tmp_path / "g")
    web.files["/o/g_1"] = (tmp_path / "g").read_bytes()
    refused(apnet2("install", web.url("/o/g_1")), "refused, it holds more than tensors")


def test_nothing_there(web, apnet2):
    del web.files[WEIGHTS]
    refused(apnet2("install", web.url(WEIGHTS)), f"{web.url(WEIGHTS)}: no such file there (404")
    web.statuses[WEIGHTS] = 503, ""
    refused(apnet2("install", web.url(WEIGHTS)), "the server answers 503 Service Unavailable; try another time")


def test_no_server(apnet2, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/g_1"
        refused(apnet2("install", url), "no connection to 127.0.0.1 (Connection refused); is this machine online?")


def test_offline(apnet2, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    reason = "no connection to example.org (Name or service not known); is this machine online?"
    refused(apnet2("install", "https://example.org/model.safetensors"), reason)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_encrypted(web, apnet2, tmp_path, monkeypatch):
    certificate = web.secure(tmp_path)
    refused(apnet2("install", web.url(WEIGHTS)), "no secure connection", "certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    web.moved["/to/http"] = web.url(WEIGHTS).replace("https:", "http:")
    refused(apnet2("install", web.url("/to/http")), "it leads to an address that is not encrypted")
    assert apnet2("install", web.url(WEIGHTS))[::2] == (0, "")


def test_moved(web, apnet2):
    web.moved = {"/latest/model.safetensors": WEIGHTS, "/latest/config.json": CONFIG}
    assert apnet2("install", web.url("/latest/model.safetensors"))[0] == 0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("ftp://example.org/model.safetensors", "ftp:// is not supported, expected https://, http:// or hf://"),
        ("https://example.org/", "names no file"),
        ("http://", "names no file"),
        ("http:///g_1", "Invalid URL"),
        ("hf://owner", "expected hf://OWNER/REPOSITORY"),
        ("owner/repository", "no such folder or file; elsewhere, a model is at https://"),
    ],
)
def test_addresses_of_nothing(source, reason, apnet2):
    refused(apnet2("install", source), reason)


def test_wrong_name_before_anything_is_fetched(web, apnet2):
    refused(apnet2("install", web.url(WEIGHTS), "--name", "a/b"), "'a/b' is no name")
    assert web.asked == []


def test_configuration_that_is_not_there(web, apnet2, tmp_path):
    refused(apnet2("install", web.url(WEIGHTS), "--config", "nowhere.json"), "nowhere.json: no such file")
    refused(apnet2("install", tmp_path / "m", "--config", tmp_path / "m/config.json"), "leave --config away")
    assert web.asked == []


def test_two_at_once(web, tmp_path):
    url, parts = web.url(WEIGHTS), tmp_path / "parts"
    web.most, web.stalls = 100_000, True
    first = threading.Thread(target=download.download, args=(url, tmp_path / "first", parts))
    first.start()
    while not list(parts.glob("*/part")):
        time.sleep(0.01)
    with pytest.raises(DownloadError, match="another process is fetching it"):
        download.download(url, tmp_path / "second", parts)
    web.most = None
    web.closing.set()  # so that the connection breaks
    first.join()
    assert (tmp_path / "first").read_bytes() == web.files[WEIGHTS] and files(parts) == []


def repository(web) -> dict[str, bytes]:
    """The files of the model under /m, and a card."""
    return {"README.md": b"# A voice", "config.json": web.files[CONFIG], "model.safetensors": web.files[WEIGHTS]}


def test_repository(hub, apnet2):
    hub.put_repository("owner/voice", repository(hub))
    for address in ("hf://owner/voice", "hf://owner/voice@v1", "hf://owner/voice/model.safetensors"):
        status, out, err = apnet2("install", address, "--name", "voice")
        assert (status, err) == (0, "") and "--vocoder_name voice" in out
        folder = store.resolve("voice")
        assert files(folder) == ["README.md", "config.json", "model.safetensors"]
        assert is_louder("voice") and not Path(folder, "model.safetensors").is_symlink()
        assert apnet2("remove", "voice")[0] == 0
    assert (f"/owner/voice/resolve/{COMMIT}/model.safetensors", 0) in hub.asked


def test_repository_with_an_official_generator(hub, apnet2, tmp_path):
    torch.save(tiny.official_generator(), tmp_path / "g")
    content, settings = (tmp_path / "g").read_bytes(), json.dumps(SETTINGS).encode()
    names = {"logs/g_00000007": content, "logs/do_00000007": b"", "logs/config.json": settings, "README.md": b"# Logs"}
    hub.put_repository("owner/logs", names)
    for address in ("hf://owner/logs/logs/g_00000007", "hf://owner/logs/logs/", "hf://owner/logs@v1/logs"):
        assert apnet2("install", address, "--name", "official")[::2] == (0, "")
        assert loader.load_model("official").config.audio.sample_rate == 16000
    assert home() == installed("official")
    assert not [path for path, _ in hub.asked if path.endswith("do_00000007")]


def test_repository_without_weights_to_choose(hub, apnet2):
    hub.put_repository("owner/voice", {"config.json": b"{}", "g_1": b"", "g_2": b""})
    refused(apnet2("install", "hf://owner/voice"), "found config.json, g_1, g_2; add the path of the file")
    refused(apnet2("install", "hf://owner/voice/g_3"), "found nothing; add the path of the file")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "no such model repository, or a private one"),
        (404, "RevisionNotFound", "the repository has no such revision"),
        (403, "GatedRepo", "ask for access at huggingface.co/owner/voice"),
        (400, "", "Bad request"),
        (500, "", "500"),
    ],
)
def test_repository_that_cannot_be_had(status, code, reason, hub, apnet2):
    hub.statuses["/api/models/owner/voice"] = status, code
    refused(apnet2("install", "hf://owner/voice"), "hf://owner/voice: ", reason)


def test_repository_offline(hub, apnet2, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        refused(apnet2("install", "hf://owner/voice"), "no connection to Hugging Face (Connection refused); is this")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(apnet2("install", "hf://owner/voice"), "HF_HUB_OFFLINE is set")


def test_library_says_nothing_itself(hub, apnet2, monkeypatch):
    logger, said = logging.getLogger("huggingface_hub"), []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record)

    def model_info(*_, **__):
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise TimeoutError("timed out")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr(logger, "handlers", [Listener()])
    level = logger.level
    refused(apnet2("install", "hf://owner/voice"), "timed out")
    assert said == [] and logger.level == level
