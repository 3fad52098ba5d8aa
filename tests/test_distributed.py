"""One model on several processes, and accumulated gradients: the same as one process with the larger batch."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import torch
import trainer.trainer
from golden_weights import golden_waveform
from small_run import in_child, make_corpus, make_trainer, small_config
from trainer import TrainerArgs

from apnet2_tts_plugin import distributed
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.run import numbered_files

N_EPOCHS, N_STEPS = 10, 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), n_files=10)  # 8 to train on


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train(corpus, out: Path, world_size: int, fault=None, **settings) -> list[int]:
    """Train in `world_size` processes; each leaves its weights and the files of its batches; returns exit codes."""
    config = small_config(
        corpus,
        out,
        epochs=N_EPOCHS,
        eval_split_size=2,
        save_step=100,
        # Adam would turn the rounding noise of vanishing gradients into whole steps
        optimizer="SGD",
        optimizer_params={"momentum": 0.9},
        lr_gen=3e-6,
        lr_disc=0.03,
        **settings,
    )
    port = free_port()

    def main(rank: int):
        if world_size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        model = Apnet2(config)
        torch.manual_seed(rank)
        for parameter in model.parameters():  # what only rank 0's weights can make equal
            torch.nn.init.normal_(parameter, std=0.02)
        training = make_trainer(config, model=model)
        files, evaluated = [], []
        optimize, eval_step = model.optimize, model.eval_step

        def note_batch(batch, trainer):
            if fault is not None:
                fault(rank, trainer, batch)
            files.append(sorted(Path(path).name for path in batch["path"]))
            return optimize(batch, trainer)

        def note_file(batch, criterion, optimizer_idx):
            evaluated.extend(batch["path"] if optimizer_idx == 0 else [])
            return eval_step(batch, criterion, optimizer_idx)

        model.optimize, model.eval_step = note_batch, note_file
        training.fit()
        left = {"model": model.state_dict(), "files": files, "evaluated": evaluated, "steps": training.total_steps_done}
        torch.save(left, out / f"rank{rank}.pt")

    out.mkdir(exist_ok=True)
    processes = [in_child(lambda rank=rank: main(rank)) for rank in range(world_size)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory):
    """What two processes left, each with half of the batch."""
    out = tmp_path_factory.mktemp("two") / "out"
    assert train(corpus, out, world_size=2, batch_size=2) == [0, 0]
    return out


def left(out: Path, rank: int = 0) -> dict:
    return torch.load(out / f"rank{rank}.pt", weights_only=True)


def test_both_processes_have_the_same_weights(two):
    first, second = left(two, 0), left(two, 1)
    assert first["steps"] == second["steps"] == N_STEPS
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def test_two_processes_are_as_good_as_one_with_the_double_batch(two, corpus, tmp_path):
    assert train(corpus, tmp_path / "out", world_size=1, batch_size=4) == [0]
    alone = left(tmp_path / "out")
    first = torch.load(next(tmp_path.glob("out/*/checkpoint_0.pth")), weights_only=True)["model"]
    for network in ("generator", "mpd", "mrd"):
        moved = [(alone["model"][name] - tensor).abs().max() for name, tensor in first.items() if network in name]
        assert max(moved) > 1e-3, network
    for name, tensor in left(two)["model"].items():
        torch.testing.assert_close(tensor, alone["model"][name], atol=1e-5, rtol=0, msg=name)
    together = [sorted(a + b) for a, b in zip(left(two, 0)["files"], left(two, 1)["files"], strict=True)]
    assert together == alone["files"]


def test_shards_differ_and_cover_all_files(two):
    shards = [left(two, rank)["files"] for rank in range(2)]
    for first, second in zip(*shards, strict=True):
        assert not set(first) & set(second)
    epochs = [shards[0][2 * i] + shards[0][2 * i + 1] for i in range(N_EPOCHS)]
    assert len({tuple(sorted(files)) for files in epochs}) > 1
    for i in range(N_EPOCHS):
        drawn = [name for shard in shards for files in shard[2 * i : 2 * i + 2] for name in files]
        assert sorted(drawn) == [f"{n:02}.wav" for n in range(8)]


def test_rank_0_evaluates_every_file_once_and_saves(two, corpus):
    names = [str(corpus / "08.wav"), str(corpus / "09.wav")]
    assert left(two, 0)["evaluated"] == names * N_EPOCHS
    assert left(two, 1)["evaluated"] == []
    saved = list(two.glob("*/*.pth"))
    assert {path.name for path in saved} >= {"checkpoint_0.pth", f"checkpoint_{N_STEPS}.pth", "best_model.pth"}
    assert len([path for path in saved if path.name == f"checkpoint_{N_STEPS}.pth"]) == 1


def test_a_process_that_fails_fails_the_others(corpus, tmp_path):
    def fault(rank, trainer, batch):
        if rank == 1 and trainer.total_steps_done == 3:
            raise RuntimeError("on purpose")

    assert train(corpus, tmp_path / "out", world_size=2, fault=fault, batch_size=2) == [1, 1]


@pytest.mark.slow
def test_not_finite_on_one_process_is_skipped_on_all(corpus, tmp_path):
    def fault(rank, trainer, batch):
        if rank == 1 and trainer.total_steps_done == 3:
            batch["waveform"] *= float("nan")

    assert train(corpus, tmp_path / "out", world_size=2, fault=fault, batch_size=2) == [0, 0]
    first, second = left(tmp_path / "out", 0), left(tmp_path / "out", 1)
    for name, tensor in first["model"].items():
        assert tensor.isfinite().all() and torch.equal(tensor, second["model"][name]), name


def test_a_signal_to_one_process_saves_and_ends_all(corpus, tmp_path):
    """Rank 0 gets two, as from a cluster and from torchrun."""

    def fault(rank, trainer, batch):
        if rank == 0 and trainer.total_steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(corpus, tmp_path / "out", world_size=2, fault=fault, batch_size=2) == [130, 130]
    assert next(tmp_path.glob("out/*/checkpoint_4.pth"))


def test_all_processes_leave_a_folder_that_is_taken(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "taken"
    folder.mkdir(parents=True)
    (folder / "checkpoint_0.pth").touch()
    monkeypatch.setattr(trainer.trainer, "get_experiment_folder_path", lambda root, name: folder)
    assert train(corpus, tmp_path / "out", world_size=2, batch_size=2) == [1, 1]
    assert {path.name for path in folder.iterdir() if path.suffix in (".pth", ".tmp")} == {"checkpoint_0.pth"}


def test_processes_with_other_files_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda files: [files, files[1:]])
    with pytest.raises(distributed.LaunchError, match=r"rank 1 has other training files \(7\) than rank 0 \(8\)"):
        make_trainer(small_config(corpus, tmp_path, eval_split_size=2))


def test_a_rank_without_a_group_is_refused(corpus, tmp_path):
    with pytest.raises(distributed.LaunchError, match="rank 1 is alone"):
        make_trainer(small_config(corpus, tmp_path), rank=1)


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"),
    [("2,5", "1", "5"), ("3", "1", "3"), ("", "0", ""), ("0,1", None, "0,1"), (None, "0", None)],
)
def test_under_torchrun_a_process_knows_its_rank_and_its_gpu(monkeypatch, visible, local_rank, expected):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", local_rank), ("RANK", "7")):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    args = TrainerArgs()
    distributed.adopt_launcher(args)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected
    assert args.rank == (0 if local_rank is None else 7)


def test_without_a_rank_the_local_one_counts(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    args = TrainerArgs()
    distributed.adopt_launcher(args)
    assert args.rank == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(
    ("environment", "use_ddp", "expected"),
    [({"WORLD_SIZE": "6"}, False, 6), ({}, True, 4), ({}, False, 1)],
)
def test_number_of_launched_processes(monkeypatch, environment, use_ddp, expected):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.n_launched(TrainerArgs(use_ddp=use_ddp)) == expected


@pytest.mark.parametrize("n_steps", [2, 3])
def test_accumulated_gradients_are_those_of_the_large_batch(corpus, tmp_path, n_steps):
    """Of 5 segments in parts of 3 and 2, or of 2, 2 and 1."""
    batch = {"waveform": torch.from_numpy(golden_waveform(5 * 8192, 3)).reshape(5, 8192)}
    states, logs = [], []
    for steps, batch_size in ((1, 5), (n_steps, -(-5 // n_steps))):
        torch.manual_seed(0)
        config = small_config(corpus, tmp_path, batch_size=batch_size, optimizer="SGD", optimizer_params={})
        model = Apnet2(config)
        model.grad_accum_steps = steps
        trainer = SimpleNamespace(use_amp_scaler=False, optimizer=model.get_optimizer(), total_steps_done=0)
        logs.append(model.optimize(batch, trainer)[1])
        states.append(model.state_dict())
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=1e-5)


def test_the_trainer_accumulates(corpus, tmp_path):
    config = small_config(corpus, tmp_path, batch_size=2, eval_split_size=2, epochs=1)
    training = make_trainer(config, grad_accum_steps=2)
    training.fit()
    assert training.total_steps_done == 2  # updates, of 4 segments each
    assert len(numbered_files(Path(training.output_path), "checkpoint")) == 2


# The recipe with small networks.
SMALL_RECIPE = """
import sys
from small_run import small_config

sys.path.insert(0, {folder!r})
import train_apnet2

official = train_apnet2.Apnet2Config
names = ("amplitude", "phase", "mpd_periods", "mpd_channels", "mrd_resolutions", "mrd_channels", "eval_metrics")
small = {{name: getattr(small_config("", ""), name) for name in names}}
train_apnet2.Apnet2Config = lambda **settings: official(**settings | small)
train_apnet2.main()
"""


def torchrun(n_processes: int, script: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", n_processes, script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run([*map(str, command), *map(str, arguments)], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_torchrun_trains_the_recipe_and_fails_with_it(tmp_path):
    script = tmp_path / "train_small.py"
    script.write_text(SMALL_RECIPE.format(folder=str(scripts.RECIPES / "ljspeech" / "apnet2")), encoding="utf-8")
    wavs = make_corpus(tmp_path / "wavs", n_files=54, n_samples=9000)
    settings = ["--batch_size", 1, "--steps", 2, "--num_loader_workers", 0, "--output_path", tmp_path / "out"]
    done = torchrun(2, script, "--data_path", wavs, *settings)
    assert done.returncode == 0, done.stderr
    (best,) = (tmp_path / "out").glob("*/best_model.pth")
    assert torch.load(best, weights_only=True)["step"] == 2
    assert (done.stdout + done.stderr).count("> EPOCH: 0/0") == 1  # one process speaks
    failed = torchrun(1, script, "--data_path", tmp_path / "nowhere", *settings)
    assert failed.returncode != 0 and "no such folder" in failed.stderr
