"""A long run: bounded memory, file handles and files; stages change at their steps."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from faults import entries_of, state_of, tiny_arguments

import train
from training import snapshots

STEPS = 5000
PARTS = 4  # begun once and resumed three times
SECOND_STAGE = 2000
BY_STAGE = ("image_size", "batch_size")


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_five_thousand_steps(tmp_path, monkeypatch, counted):
    out, keep = tmp_path / "out", 2
    measured = []
    between = snapshots.Keeper.between_steps

    def watched(keeper, **kwargs):
        between(keeper, **kwargs)
        if keeper.progress.step % 25 == 0:
            gc.collect()
            handles = len(os.listdir("/proc/self/fd"))
            measured.append((keeper.progress.step, resident_bytes(), handles))

    monkeypatch.setattr(snapshots.Keeper, "between_steps", watched)
    arguments = [*tiny_arguments(tmp_path, SECOND_STAGE), "--output_dir", str(out), "--keep",
                 str(keep), "--sample_interval", "40", "--model_save_interval", "300",
                 "--state_seconds", "5"]  # fmt: skip
    for part in range(1, PARTS + 1):
        last = STEPS * part // PARTS
        assert train.main([*arguments, "--resume", "--max_steps", str(last)]) == 0
        sheets = {path.name[:6] for path in out.glob("??????_fixed.png")}
        assert len(sheets) <= snapshots.SHEETS_PER_KEEP * keep
        assert len(list(out.glob("snapshot_*"))) <= keep
        assert len(list((out / "tensorboard").iterdir())) == part  # one file per process
        counted(f"step {last}: previews of {len(sheets)} steps, {len(list(out.iterdir()))} files "
                "in all")  # fmt: skip
    assert state_of(out)["step"] == STEPS
    logged = [entry for entry in entries_of(out) if "image_size" in entry]
    assert [entry["step"] for entry in logged] == list(range(10, STEPS + 1, 10))
    for entry in logged:
        stage = (4, 3) if entry["step"] <= SECOND_STAGE else (8, 2)
        assert (entry["image_size"], entry["batch_size"]) == stage
    # Images seen are counted step by step, so they tell exactly where the stage changed.
    assert state_of(out)["images_seen"] == SECOND_STAGE * 3 + (STEPS - SECOND_STAGE) * 2
    steps, memory, handles = np.array(measured).T
    settled = steps > SECOND_STAGE + 500
    slope = np.polyfit(steps[settled], memory[settled], 1)[0]
    counted(f"{STEPS} steps: memory {memory[settled][0] / 2**20:.0f} MiB at step "
          f"{steps[settled][0]}, {memory[-1] / 2**20:.0f} MiB at the end, slope "
          f"{slope:.0f} bytes per step; file handles {min(handles[settled])} to "
          f"{max(handles[settled])}")  # fmt: skip
    assert abs(slope) < 4096  # 200,000 steps would take less than 1 GB more
    assert max(handles[settled]) <= min(handles[settled]) + 2
