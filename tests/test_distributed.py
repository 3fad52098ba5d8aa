"""One model on several processes, and accumulated gradients: the same as one process with the larger batch."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import scripts
import tiny
import torch
import trainer.trainer
from small_run import in_child, make_batch, make_corpus, make_trainer, small_config, stub_trainer, watch
from trainer import TrainerArgs

from apnet2_tts_plugin.errors import LaunchError
from apnet2_tts_plugin.model import Apnet2
from apnet2_tts_plugin.training import distributed

N_EPOCHS, N_STEPS = 10, 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), n_files=10)  # 8 to train on


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train(corpus, out: Path, world_size=2, batch_size=2, faulty_rank=0, fault=id, continue_path="") -> list[int]:
    """Train in some processes; each leaves its weights and the files of its batches; returns exit codes.

    `fault` is called with the fourth batch in one of them.
    """
    config = small_config(
        corpus,
        out,
        epochs=N_EPOCHS,
        batch_size=batch_size,
        eval_split_size=2,
        save_step=100,
        # Adam would turn the rounding noise of vanishing gradients into whole steps
        optimizer="SGD",
        optimizer_params={"momentum": 0.9},
        lr_gen=3e-6,
        lr_disc=0.03,
    )
    out.mkdir(exist_ok=True)
    port = free_port()

    def main(rank: int):
        if world_size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        torch.manual_seed(0)
        model = Apnet2(config)
        model.add_discriminators()
        with torch.no_grad():
            for parameter in model.generator.parameters():
                parameter.normal_(std=0.02)
            for parameter in model.parameters():
                parameter *= 1 + rank  # what only rank 0's weights can make equal
        training = make_trainer(config, model=model, continue_path=continue_path)
        batches, evaluated = watch(model, "optimize"), watch(model, "eval_step")

        def format_batch(batch):
            if (rank, training.total_steps_done) == (faulty_rank, 3):
                fault(batch)
            return batch

        model.format_batch = format_batch
        training.fit()
        left = {
            "model": model.state_dict(),
            "files": [sorted(Path(path).name for path in batch["path"]) for batch, _ in batches],
            "evaluated": [path for batch, _ in evaluated for path in batch["path"]],
            "steps": training.total_steps_done,
        }
        torch.save(left, out / f"rank{rank}.pt")

    processes = [in_child(lambda rank=rank: main(rank)) for rank in range(world_size)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory):
    """What two processes left, each with half of the batch."""
    out = tmp_path_factory.mktemp("two") / "out"
    assert train(corpus, out) == [0, 0]
    return out


def left(out: Path, rank: int = 0) -> dict:
    return torch.load(out / f"rank{rank}.pt", weights_only=True)


def test_both_processes_have_the_same_weights(two):
    first, second = left(two, 0), left(two, 1)
    assert first["steps"] == second["steps"] == N_STEPS
    torch.testing.assert_close(first["model"], second["model"], atol=0, rtol=0)


def test_two_processes_are_as_good_as_one_with_the_double_batch(two, corpus, tmp_path):
    assert train(corpus, tmp_path / "out", world_size=1, batch_size=4) == [0]
    alone = left(tmp_path / "out")
    first = torch.load(next(tmp_path.glob("out/*/checkpoint_0.pth")), weights_only=True)["model"]
    for network in ("generator", "mpd", "mrd"):
        moved = [(alone["model"][name] - tensor).abs().max() for name, tensor in first.items() if network in name]
        assert max(moved) > 1e-3, network
    torch.testing.assert_close(left(two)["model"], alone["model"], atol=1e-5, rtol=0)
    together = [sorted(a + b) for a, b in zip(left(two, 0)["files"], left(two, 1)["files"], strict=True)]
    assert together == alone["files"]


def test_rank_0_evaluates_every_file_once_and_saves(two, corpus):
    names = [str(corpus / "08.wav"), str(corpus / "09.wav")]
    assert left(two, 0)["evaluated"] == names * N_EPOCHS
    assert left(two, 1)["evaluated"] == []
    saved = list(two.glob("*/*.pth"))
    assert {path.name for path in saved} >= {"checkpoint_0.pth", f"checkpoint_{N_STEPS}.pth", "best_model.pth"}
    assert len([path for path in saved if path.name == f"checkpoint_{N_STEPS}.pth"]) == 1


def test_a_process_that_fails_fails_the_others(corpus, tmp_path):
    assert train(corpus, tmp_path / "out", faulty_rank=1, fault=dict.clear) == [1, 1]


@pytest.mark.slow
def test_not_finite_on_one_process_is_skipped_on_all(corpus, tmp_path):
    def fault(batch):
        batch["waveform"] *= float("nan")

    assert train(corpus, tmp_path / "out", faulty_rank=1, fault=fault) == [0, 0]
    first, second = left(tmp_path / "out", 0), left(tmp_path / "out", 1)
    torch.testing.assert_close(first["model"], second["model"], atol=0, rtol=0)  # no NaN


def test_a_signal_to_one_process_saves_and_ends_all_and_all_go_on(corpus, two, tmp_path):
    """Rank 0 gets two, as from a cluster and from torchrun."""

    def fault(_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(corpus, tmp_path / "out", fault=fault) == [130, 130]
    (checkpoint,) = tmp_path.glob("out/*/checkpoint_4.pth")
    assert train(corpus, tmp_path / "out", continue_path=str(checkpoint.parent)) == [0, 0]
    for rank in range(2):
        expected, found = left(two, rank), left(tmp_path / "out", rank)
        assert found["files"] == expected["files"][4:]
        torch.testing.assert_close(found["model"], expected["model"], atol=0, rtol=0)


def test_all_processes_leave_a_folder_that_is_taken(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "taken"
    folder.mkdir(parents=True)
    (folder / "checkpoint_0.pth").touch()
    monkeypatch.setattr(trainer.trainer, "get_experiment_folder_path", lambda root, name: folder)
    assert train(corpus, tmp_path / "out") == [1, 1]
    assert {path.name for path in folder.iterdir() if path.suffix in (".pth", ".tmp")} == {"checkpoint_0.pth"}


def test_processes_with_other_files_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda files: [files, files[1:]])
    with pytest.raises(LaunchError, match=r"rank 1 has other training files \(7\) than rank 0 \(8\)"):
        make_trainer(small_config(corpus, tmp_path, eval_split_size=2))


def test_a_rank_without_a_group_is_refused(corpus, tmp_path):
    with pytest.raises(LaunchError, match="rank 1 is alone"):
        make_trainer(small_config(corpus, tmp_path), rank=1)


@pytest.mark.parametrize(
    ("visible", "n_gpus", "local_rank", "rank", "expected"),
    [
        ("2,5", 2, "1", "7", "5"),
        ("2,5", 2, "1", None, "5"),
        ("3", 1, "2", "7", "3"),
        ("", 0, "2", "7", ""),
        (None, 0, "2", "7", None),
        (None, 1, "2", "7", None),
        (None, 4, "2", "7", "2"),
        ("0,1", 2, None, None, "0,1"),
        ("0,1", 2, "2", "7", LaunchError),
    ],
)
def test_under_torchrun_a_process_knows_its_rank_and_its_gpu(monkeypatch, visible, n_gpus, local_rank, rank, expected):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", local_rank), ("RANK", rank)):
        monkeypatch.setenv(name, value or "")  # so that it is put back
        if value is None:
            monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    args, refused = TrainerArgs(), expected is LaunchError
    with pytest.raises(LaunchError, match="local rank 2: there are 2 GPUs") if refused else nullcontext():
        distributed.adopt_launcher(args)
    assert args.rank == int(rank or local_rank or 0)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (visible if refused else expected)


@pytest.mark.parametrize(("launched", "use_ddp", "expected"), [("6", False, 6), (None, True, 4), (None, False, 1)])
def test_number_of_launched_processes(monkeypatch, launched, use_ddp, expected):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", launched)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.n_launched(TrainerArgs(use_ddp=use_ddp)) == expected


@pytest.mark.parametrize("n_parts", [2, 3])
def test_accumulated_gradients_are_those_of_the_large_batch(n_parts):
    """Of 5 segments in parts of 3 and 2, or of 2, 2 and 1."""
    states, logs = [], []
    for accumulation in (1, n_parts):
        model = tiny.model(optimizer="SGD", optimizer_params={})
        torch.manual_seed(0)  # of the discriminators
        trainer = stub_trainer(model, grad_accum_steps=accumulation)
        logs.append(model.optimize(make_batch(5), trainer)[1])
        states.append(model.state_dict())
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    torch.testing.assert_close(states[1], states[0], atol=1e-6, rtol=1e-5)


# The recipe with small networks.
SMALL_RECIPE = """
import sys
import tiny

sys.path.insert(0, {folder!r})
import train_apnet2

train_apnet2.Apnet2Config.preset = lambda _, **settings: tiny.config(**settings, eval_metrics=[])
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
