"""Commands work with closed or broken standard streams, in log files, with one writable folder."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from faults import state_of, tiny_arguments, wait_for
from test_disk_commands import COMMANDS, contents, place, run  # noqa: F401  # place is a fixture

from system import screen
from system.files import output_folder

ROOT = Path(__file__).parent.parent
ALL = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
WORK = """
import os, sys
from pathlib import Path
from system.screen import progress_bar, safe_streams

with safe_streams(), Path("result").open("w") as file:
    sys.stdin.readline()
    assert file.fileno() > 2
    os.system("echo from another program; echo from another program >&2")
    print("out")
    print("err", file=sys.stderr)
    file.write(str(len(list(progress_bar(3, "step")))))
"""


def closing(descriptors):
    return lambda: [os.close(descriptor) for descriptor in descriptors]


def run_python(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, **options)


@pytest.mark.parametrize("closed", ALL)
def test_closed_streams(tmp_path, closed):
    done = run_python(
        "-c", WORK, cwd=tmp_path, preexec_fn=closing(closed), stdin=subprocess.DEVNULL,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == "3"
    assert done.stdout.endswith(b"out\n") == (1 not in closed)
    assert done.stderr.endswith(b"err\n") == (2 not in closed)


@pytest.mark.parametrize(
    ("streams", "code", "error"),
    [
        ({"stdout": "/dev/full"}, 1, b"error: cannot write the standard output (No space left"),
        ({"stderr": "/dev/full"}, 0, None),
    ],
)
def test_streams_on_a_full_disk(streams, code, error):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    files = {name: open(path, "wb") for name, path in streams.items()}  # noqa: SIM115
    done = run_python(ROOT / "train.py", "--list_curricula", **{**both, **files})
    for file in files.values():
        file.close()
    assert done.returncode == code
    assert done.stderr is None if error is None else done.stderr.startswith(error)


def test_a_terminal_that_is_gone(tmp_path):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WORK], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        assert wait_for((tmp_path / "result").exists, process)
        os.close(ours)
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "result").read_text() == "3"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"image metrics"}))
def test_every_command_with_all_streams_closed(name, place, monkeypatch):  # noqa: F811
    case = COMMANDS[name]
    assert run(monkeypatch, case, place / "good") == 0
    words = [str(word) for word in sys.argv[1:]]
    words = [word.replace(str(place / "good"), str(place / "out")) for word in words]
    (place / "out").mkdir()
    command = ROOT / f"{case.command.__name__}.py"
    done = run_python(command, *words, cwd=place, preexec_fn=closing((0, 1, 2)))
    assert done.returncode == 0
    assert set(contents(place / "out")) == set(contents(place / "good"))


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", ["1", "2"])
@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_training_with_closed_streams(tmp_path, num_processes, closed):
    words = [*tiny_arguments(tmp_path), "--output_dir", tmp_path / "out", "--max_steps", "3"]
    done = run_python(
        ROOT / "train.py", *words, "--num_processes", num_processes, preexec_fn=closing(closed)
    )
    assert done.returncode == 0
    assert state_of(tmp_path / "out")["step"] == 3


def no_place(*_):
    raise FileNotFoundError("No usable temporary directory found")


def test_the_output_folder_serves_for_temporary_files_if_there_is_no_other_place(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", "/tmp")
    output_folder(tmp_path / "out")
    assert os.environ["TMPDIR"] == "/tmp"
    monkeypatch.setattr(tempfile, "gettempdir", no_place)
    monkeypatch.chdir(tmp_path)
    output_folder(Path("out"))
    assert os.environ["TMPDIR"] == str(tmp_path / "out")


READ_ONLY = """
mount --make-rprivate / && mount --bind "$0" /mnt && mount -o remount,ro,bind / && cd / && exec "$@"
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "plot_run.py"])
def test_only_the_output_folder_can_be_written(tmp_path, name):
    (tmp_path / "rw").mkdir()
    words = [ROOT / name, *tiny_arguments(tmp_path), "--max_steps", "2", "--num_processes", "2",
             "--cache_dir", "/mnt/cache", "--output_dir", "/mnt/out"]  # fmt: skip
    if name == "plot_run.py":
        words = [ROOT / name, ROOT / "assets" / "demo", "--output", "/mnt/out/run.png"]
    alone = ["unshare", "--mount", "bash", "-c", READ_ONLY, tmp_path / "rw"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("only root may make folders read-only for one process")
    environment = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
    done = subprocess.run([*alone, sys.executable, *words], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rw" / "out").is_dir()


LITTLE_SHARED_MEMORY = """
mount --make-rprivate / && mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"
"""


@pytest.mark.slow
def test_two_processes_resume_with_little_shared_memory(tmp_path):
    alone = ["unshare", "--mount", "bash", "-c", LITTLE_SHARED_MEMORY, "-"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("only root may limit shared memory for one process")
    words = [*tiny_arguments(tmp_path), "--output_dir", tmp_path / "out", "--num_processes", "2"]
    assert run_python(ROOT / "train.py", *words, "--max_steps", "1").returncode == 0
    more = [ROOT / "train.py", *words, "--resume", "--max_steps", "2"]
    assert (tmp_path / "out" / "training_state.pth").stat().st_size > 2**16
    done = subprocess.run([*alone, sys.executable, *more], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert state_of(tmp_path / "out")["step"] == 2


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_bar_in_a_log_prints_lines_and_none_in_the_first_seconds(seconds, monkeypatch, capsys):
    monkeypatch.setattr(screen, "LOG_SECONDS", seconds)
    with screen.progress_bar(3, "img", "reading") as bar:
        for index in bar:
            bar.write(f"note {index}", file=sys.stderr)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "note" in line] == ["note 0", "note 1", "note 2"]
    assert all(line.startswith(("note", "reading: ")) for line in lines)
    assert (len(lines) > 3) == (seconds == 0)
