"""Parsing of seeds, numbers, devices and mistyped flags; exit codes of commands."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from system import flags
from system.errors import UsageError, choose, nearest_path

ROOT = Path(__file__).parent.parent


def parser():
    owners = {"": "--preset", "--dry": "--output_dir"}
    result = flags.ArgumentParser(description="Test.", owners=owners)
    result.add_argument("path", nargs="?")
    result.add_argument("--preset")
    for flag in ("--dry", "--wet"):
        result.add_argument(flag, action="store_true")
    result.add_argument("--output_dir")
    result.add_argument("--batch_size", type=flags.positive_int, default=4)
    result.add_argument("--keep", type=flags.non_negative_int)
    result.add_argument("--rate", type=flags.positive_float)
    result.add_argument("--psi", type=flags.fraction)
    result.add_argument("--port", type=flags.port_number)
    result.add_argument("--offset", type=float)
    result.add_argument("-n", type=int)
    flags.add_device(result)
    flags.add_seeds(result)
    return result


class TestSeeds:
    @pytest.mark.parametrize(
        ("texts", "seeds"),
        [
            (["0", "1", "2"], [0, 1, 2]),
            (["0-15"], list(range(16))),
            (["0,3,7-9"], [0, 3, 7, 8, 9]),
            (["5", "1-2,0", "7-7"], [5, 1, 2, 0, 7]),
            (["0", "1", "0"], [0, 1, 0]),
            (["0, 4"], [0, 4]),
        ],
    )
    def test_numbers_ranges_and_mixtures_in_the_order_typed(self, texts, seeds):
        assert flags.parse_seeds(texts) == seeds
        assert parser().parse_args(["--seeds", *texts]).seeds == seeds

    @pytest.mark.parametrize("text", ["x", "-1", "1.5", "3-", "1--2", "", "0,,1", "²", "1e3"])
    def test_rubbish_is_named(self, text):
        with pytest.raises(UsageError, match="is no seed"):
            flags.parse_seeds([text])


class TestParser:
    @pytest.mark.parametrize(
        ("typed", "message"),
        [
            (["--ouput_dir", "out"], "unknown flag --ouput_dir. Did you mean '--output_dir'?"),
            (["--output-dir=out"], "unknown flag --output-dir. Did you mean '--output_dir'?"),
            (["-output_dir", "out"], "unknown flag -output_dir. Did you mean '--output_dir'?"),
            (["--seed", "3"], "unknown flag --seed. Did you mean '--seeds'?"),
            (["--zzz"], "unknown flag --zzz."),
            (["--batch_size", "0"], "--batch_size: must be a whole number of at least 1, not '0'"),
            (["--batch_size", "2.5"], "must be a whole number of at least 1, not '2.5'"),
            (["--keep", "-1"], "must be a whole number of at least 0, not '-1'"),
            (["--rate", "nan"], "must be a number above 0, not 'nan'"),
            (["--rate", "inf"], "must be a number above 0, not 'inf'"),
            (["--psi", "1.5"], "must be a number from 0 to 1, not '1.5'"),
            (["--port", "70000"], "must be a port from 0 to 65535, not '70000'"),
            (["--output_dir"], "--output_dir: expected one argument"),
            (["a", "b.png"], "too many words: b.png; a pattern"),
            (["a", "b", "--preset", "c"], "too many words: b; a pattern"),
            (["a", "b"], "'b' needs a flag: --preset b"),
            (["a", "--dry", "run/b"], "--dry takes no value; write --dry --output_dir run/b"),
            (["--dry=run/b"], "--dry takes no value; write --dry --output_dir run/b"),
            (["a", "--wet", "b"], "--wet takes no value"),
        ],
    )
    def test_complaint_is_one_line_that_helps(self, typed, message):
        with pytest.raises(UsageError) as caught:
            parser().parse_args(typed)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_mistyped_flag_is_named_before_what_then_is_missing(self):
        result = flags.ArgumentParser(description="Test.")
        result.add_argument("--dataset_path", required=True)
        with pytest.raises(UsageError, match="unknown flag --dataset_pat"):
            result.parse_args(["--dataset_pat", "x"])

    def test_values_that_look_like_flags(self):
        args = parser().parse_args(["--offset", "-1e-3", "-n5", "--", "--odd-name"])
        assert (args.offset, args.n, args.path) == (-1e-3, 5, "--odd-name")
        assert parser().parse_args(["--output_dir=--x"]).output_dir == "--x"

    @pytest.mark.parametrize("typed", [["--output_dir=~/x"], ["--output_dir", "~/x"], ["~/x"]])
    def test_the_home_folder(self, typed, monkeypatch):
        monkeypatch.setenv("HOME", "/home/somebody")
        args = parser().parse_args(typed)
        assert (args.output_dir or args.path) == "/home/somebody/x"

    def test_numbers(self):
        typed = "--batch_size 8 --keep 0 --rate 2e-4 --psi 0.7 --port 0".split()
        args = parser().parse_args(typed)
        assert (args.batch_size, args.keep, args.rate, args.psi, args.port) == (8, 0, 2e-4, 0.7, 0)

    def test_help_shows_defaults_but_no_none(self):
        text = " ".join(parser().format_help().split())
        assert "(default: auto)" in text
        assert "None" not in text


class TestDevice:
    @pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "", "CPU!"])
    def test_no_device(self, text):
        with pytest.raises(UsageError, match="choose auto, cpu, cuda"):
            flags.resolve_device(text)

    def test_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert flags.resolve_device("auto") == torch.device("cpu")
        for text in ("cuda", "cuda:0"):
            with pytest.raises(UsageError, match=f"--device {text}: PyTorch sees no CUDA device"):
                flags.resolve_device(text)

    @pytest.mark.parametrize(("cuda", "why"), [(None, "is without CUDA"), ("13.0", "driver may")])
    def test_auto_says_why_it_takes_the_cpu_beside_an_nvidia_gpu(
        self, cuda, why, monkeypatch, tmp_path, capsys
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert flags.resolve_device("auto") == torch.device("cpu")
        assert capsys.readouterr().err == ""
        (tmp_path / "nvidia-smi").touch(mode=0o755)
        assert flags.resolve_device("auto") == torch.device("cpu")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("note: this machine seems to have an NVIDIA GPU")
        assert why in line
        monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of the machine says it
        flags.resolve_device("auto")
        monkeypatch.delenv("LOCAL_RANK")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the GPU is hidden on purpose
        flags.resolve_device("auto")
        flags.resolve_device("cpu")
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("capability", "built", "runs"),
        [
            ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),
            ((8, 9), ["sm_75", "sm_80", "sm_90"], True),
            ((7, 5), ["sm_80"], False),
            ((9, 0), ["sm_90a"], True),
            ((12, 0), ["sm_90a", "sm_100"], False),
            ((12, 0), ["sm_90", "compute_90"], True),
            ((10, 3), ["sm_100"], True),
        ],
    )
    def test_a_gpu_for_which_pytorch_has_no_code(self, capability, built, runs, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
        if runs:
            assert flags.resolve_device("auto") == torch.device("cuda", 0)
        else:
            with pytest.raises(UsageError, match="no code for Tesla V100"):
                flags.resolve_device("auto")

    def test_with_two_cuda_devices(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert flags.resolve_device("auto") == torch.device("cuda", 0)
        assert flags.resolve_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
            flags.resolve_device("cuda:2")

    def test_without_mps(self, monkeypatch):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(UsageError, match="no Apple GPU"):
            flags.resolve_device("mps")


class TestChoose:
    def test_nearest_whatever_the_case(self):
        with pytest.raises(UsageError, match="Did you mean 'CelebA'"):
            choose("curriculum", "celebb", {"CelebA": 1, "Cats": 2})

    def test_no_hint_where_nothing_is_close(self):
        with pytest.raises(UsageError, match=r"choose one of a\.$"):
            choose("thing", "zzzzzz", {"a": 1})


class TestRun:
    def test_exit_code_is_passed_on(self):
        assert flags.run(lambda _: 7) == 7

    def test_usage_error_is_one_line(self, capsys):
        def main(_):
            raise UsageError("no such\nfile")

        assert flags.run(main) == 2
        assert capsys.readouterr() == ("", "error: no such file\n")

    def test_interrupt_is_one_line(self, capsys):
        def main(_):
            raise KeyboardInterrupt

        assert flags.run(main) == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_our_bugs_keep_their_traceback(self):
        def main(_):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            flags.run(main)

    def test_pipe_that_is_not_stdout_is_our_bug(self):
        def main(_):
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            flags.run(main)

    def test_reader_that_went_away_ends_us_silently(self):
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys, test_flags as t; sys.exit(t.chatter())"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141

    def test_a_reader_that_went_away_on_windows(self, monkeypatch, capsys):
        def gone(*_):
            raise OSError(errno.EINVAL, "Invalid argument")

        stdout = types.SimpleNamespace(write=gone, flush=gone, isatty=lambda: False)
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(os, "dup2", lambda *_: None)
        assert flags.run(lambda _: print("text")) == 141
        assert capsys.readouterr().err == ""


def chatter():
    """Print more than any pipe can buffer."""

    def main(_):
        for number in range(100_000):
            print(number)
        return 0

    return flags.run(main)


def test_many_words_are_one_short_line_about_quotes():
    words = [f"photos/{index}.png" for index in range(500)]
    with pytest.raises(UsageError) as caught:
        parser().parse_args(["--output_dir", *words])
    assert str(caught.value) == (
        "too many words: photos/2.png photos/3.png photos/4.png and 495 more; a pattern such as "
        "'photos/*.png' must stand in quotes"
    )


def test_a_mistyped_choice_is_answered_with_the_nearest():
    result = flags.ArgumentParser(description="Test.")
    result.add_argument("--format", choices=["mp4", "frames"])
    with pytest.raises(UsageError, match="--format: 'frame' is none of mp4, frames. Did you mean"):
        result.parse_args(["--format", "frame"])


def test_the_nearest_path_is_another_one(tmp_path):
    (tmp_path / "runs").mkdir()
    assert nearest_path(tmp_path / "runs") == ""
    (tmp_path / "run").mkdir()
    assert nearest_path(tmp_path / "runs") == f" Did you mean {str(tmp_path / 'run')!r}?"


def run_without_trimesh(folder, *words):
    """Run Python at the root with a package trimesh that cannot be imported."""
    (folder / "trimesh.py").write_text("raise ModuleNotFoundError('none here', name='trimesh')")
    return subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_a_package_that_is_not_installed_fails_the_command_that_needs_it_in_one_line(tmp_path):
    found = run_without_trimesh(tmp_path, "extract_shapes.py", "--help")
    assert found.returncode == 2
    assert found.stderr == "error: needs the package trimesh: pip install -r requirements.txt\n"
    assert run_without_trimesh(tmp_path, "render_video.py", "--help").returncode == 0


def test_a_script_of_somebody_else_keeps_its_traceback(tmp_path):
    found = run_without_trimesh(tmp_path, "-c", "import geometry.surface")
    assert found.returncode == 1
    assert found.stderr.startswith("Traceback")


def test_names_that_a_console_cannot_show_are_no_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "plot_run.py", "assets/demo", "--output", tmp_path / "图.png"],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert rb"\u56fe.png" in done.stdout
    assert (tmp_path / "图.png").exists()
