"""Machines with different data or flags: all refuse before the first step."""

import socket

import pytest
from faults import assert_same_state, complete, start, tiny_arguments
from PIL import Image

from training.start import first_other


def pictures(folder, colors):
    folder.mkdir()
    for number, color in enumerate(colors):
        Image.new("RGB", (8, 8), (color, 40, 40)).save(folder / f"{number}.png")
    return folder


def two_machines(folder, words, *of_each):
    """Return exit code and stderr of two processes, started as torchrun would on two machines.

    Each has a disk, that is a folder, of its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank, own in enumerate(of_each):
        disk = folder / f"host{rank}"
        disk.mkdir()
        arguments = [*tiny_arguments(disk), "--output_dir", disk / "out", *words, *own]
        processes.append(start(
            arguments, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo"))  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["--dataset_path", "fewer"], "rank 1 has 4 pictures and rank 0 5, at 4 px; copy the data"),
        pytest.param(["--dataset_path", "other"], "rank 1 has 5 pictures as rank 0, but not the "
                     "same ones, at 4 px", marks=pytest.mark.slow),
        pytest.param(["--set", "0.gen_lr=0.5"], "rank 1 was started with another --curriculum,",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_machines_with_other_data_or_flags_are_refused(tmp_path, own, told):
    pictures(tmp_path / "full", range(5))
    pictures(tmp_path / "fewer", range(4))
    pictures(tmp_path / "other", [0, 1, 2, 9, 4])
    path = ["--dataset_path", tmp_path / "full"]
    own = [tmp_path / word if word in ("fewer", "other") else word for word in own]
    results = two_machines(tmp_path, path, [], own)
    for rank, (code, error) in enumerate(results):
        lines = [line for line in error.splitlines() if line and "cach" not in line]
        assert code == 2, error
        assert len(lines) == 1, error
        assert lines[0].startswith(f"error: {told}"), error
        assert not (tmp_path / f"host{rank}" / "out" / "log.jsonl").exists()


@pytest.mark.slow
def test_the_same_pictures_in_other_places_are_taken(tmp_path):
    """Uses a number of pictures that neither the ranks nor the batch size divide."""
    paths = [["--dataset_path", pictures(tmp_path / name, range(5))] for name in ("one", "two")]
    words = ["--max_steps", "6"]
    for code, error in two_machines(tmp_path, words, *paths):
        assert code == 0, error
    words = ["--num_processes", "2", *words, *paths[0], "--output_dir", tmp_path / "whole"]
    complete([*tiny_arguments(tmp_path), *words])
    assert_same_state(tmp_path / "host0" / "out", tmp_path / "whole")


def test_the_first_rank_that_differs_is_named():
    assert first_other([3, 3, 3]) is None
    assert first_other([3, 3, 4, 5]) == 2
