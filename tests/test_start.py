"""A run computes its start once and passes the same object to all processes."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from faults import differences, state_of
from test_going_on import photos
from test_train import run

import curriculums
import datasets
import train
from checkpoint_io import checkpoints
from distributed import collectives
from distributed.processes import Place
from image_io.files import Listing
from system.errors import UsageError
from training import start


def counted_calls(monkeypatch, module, name):
    """Record the calls of a function; return the list that receives them."""
    calls, function = [], getattr(module, name)

    def counting(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_pictures_are_listed_and_the_state_is_read_once(tiny, tmp_path, monkeypatch):
    words = ["--dataset_path", photos(tmp_path / "photos", 5)]  # a stage of 4 px and one of 8 px
    listed = counted_calls(monkeypatch, datasets, "find_pictures")
    read = counted_calls(monkeypatch, checkpoints, "read")
    assert run(tiny, tmp_path / "out", "--max_steps", "1", *words) == 0
    assert (len(listed), len(read)) == (1, 0)
    assert run(tiny, tmp_path / "out", "--max_steps", "2", "--resume") == 0
    assert [path for path, _ in read] == [tmp_path / "out" / "training_state.pth"]
    assert len(listed) == 2


def test_a_start_travels_to_processes_as_one_tensor(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path / "out", "--max_steps", "1")
    content = state_of(tmp_path / "out")
    trained = checkpoints.curriculum_of(tmp_path, content)
    listing = Listing(source="photos", names=("a.png", "b.png"), stamps=((1, 2), (3, 4)))
    first = start.Start(
        typed=trained, curriculum=trained, listing=listing, path=None, content=content,
        before=trained, step=1,
        seed=5, seed_before=0, own_state=None,
    )  # fmt: skip
    _, (packed,) = first.__reduce__()
    assert packed.dtype == torch.uint8
    assert first.__reduce__()[1][0] is packed  # not packed again for each process

    def no_memory(_):
        raise RuntimeError("unable to allocate shared memory")

    shared = pickle.dumps(first)
    monkeypatch.setattr(start, "shared_memory", lambda: 3 * len(packed))
    assert not isinstance(first.__reduce__()[1][0], torch.Tensor)  # NCCL needs some as well
    few = ForkingPickler.dumps(first)  # as processes are started
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_memory)
    for data in (shared, few, ForkingPickler.dumps(first)):
        second = pickle.loads(data)
        assert second.curriculum == trained
        assert (second.listing, second.step, second.seed) == (listing, 1, 5)
        assert differences(dict(second.content), dict(content)) == []


def test_a_run_that_saves_between_start_and_lock_is_noticed(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path / "out", "--max_steps", "1")
    begin = start._start

    def slow(*args):
        found = begin(*args)
        with monkeypatch.context() as patched:
            patched.setattr(start, "_start", begin)
            run(tiny, tmp_path / "out", "--max_steps", "2", "--resume")
        return found

    monkeypatch.setattr(start, "_start", slow)
    with pytest.raises(UsageError, match="another run has saved in it since"):
        run(tiny, tmp_path / "out", "--max_steps", "3", "--resume")
    assert state_of(tmp_path / "out")["step"] == 2


def test_a_machine_without_a_state_takes_the_newest_of_the_others(tiny, tmp_path, monkeypatch):
    path = photos(tmp_path / "photos", 5)
    run(tiny, tmp_path / "other", "--max_steps", "1", "--seed", "4", "--dataset_path", path)
    content, sent = state_of(tmp_path / "other"), io.BytesIO()
    torch.save(content, sent)
    typed = curriculums.load("Tiny", file=tmp_path / "tiny.py")
    wanted = train._options(
        train.build_parser().parse_args(["--resume", "--output_dir", str(tmp_path / "own")]), []
    )
    place = Place(device=torch.device("cpu"), rank=0, world_size=2)  # two machines of one process
    own = start.resolve(typed, wanted, place)
    assert (own.content, own.step, own.listing.source) == (None, 0, "built-in toy cars")

    def of_both(value):  # equal commands; the other machine has a state of step 1
        return [-1, 1] if value == -1 else [value, value]

    monkeypatch.setattr(collectives, "values_of_all", of_both)
    monkeypatch.setattr(collectives, "broadcast_bytes", lambda data, source: sent.getvalue())
    agreed = start.agree(place, own, wanted)
    assert (agreed.step, agreed.seed, agreed.listing.source) == (1, 4, path)
    assert differences(dict(agreed.content), dict(content)) == []
