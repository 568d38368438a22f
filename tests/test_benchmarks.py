"""The benchmarks: their tables, the textbook baseline, and the GPU's sections run on the CPU."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from documented import ROOT
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import curriculums
from benchmarks import cpu, demo, gpu, gpu_checks, inversion, recipes, samples, table, view
from benchmarks.bench import Bench, Sizes, median_seconds
from benchmarks.table import Table
from benchmarks.textbook import TextbookGame, twin_of
from config.stage import OptimizerOptions, Precision
from generators import fast_rays
from generators.inversion import FitOptions
from rendering import viewing
from siren.fused import cpu as fused_cpu
from siren.siren import TALLSIREN, EmbeddingPiGAN128
from system.errors import UsageError
from training.adversarial import AdversarialGame


def log(folder, entries):
    folder.mkdir(exist_ok=True)
    lines = [{"step": 0, "saved": True}, *entries]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def entry(step, size, seconds):
    return {"step": step, "image_size": size, "seconds_per_step": seconds}


def test_seconds_of_a_run_and_of_as_many_steps_of_the_textbook(tmp_path):
    run = log(tmp_path, [entry(10, 16, 0.5), entry(1500, 16, 0.1), entry(4000, 32, 0.2)])
    ours = demo.seconds_by_size(run)
    assert ours == {16: (1500, pytest.approx(154.0)), 32: (2500, pytest.approx(500.0))}
    rows = {row[0]: row[1:] for row in demo.compared(ours, {16: 0.2, 32: 0.6}).rows}
    assert rows["32 px"] == (2500, pytest.approx(5), pytest.approx(1 / 0.6), pytest.approx(3))
    assert rows["whole"] == pytest.approx((4000, 4000 / 654, 4000 / 1800, 1800 / 654))


def test_the_demo_is_not_trained_over_another_run(tmp_path):
    with pytest.raises(UsageError, match=f"--demo {tmp_path} exists"):
        demo.measure(tmp_path, dict)


def test_the_textbooks_step_is_timed_after_each_part_of_the_demo(tmp_path, monkeypatch):
    run, entries, turns = tmp_path / "run", [], []

    def train(words, **_):
        stop = int(words[-1].split()[-1])
        turns.append(stop)
        entries.append(entry(stop, 16 if stop <= 1500 else 32, 0.1))
        log(run, entries)

    def textbook():
        turns.append("textbook")
        return {16: 0.2, 32: float(len(entries))}

    monkeypatch.setattr(demo.subprocess, "run", train)
    rows = {row[0]: row[1:] for row in demo.measure(run, textbook).rows}
    stops = [*range(500, 4501, 500), 4600]
    assert turns == [turn for stop in stops for turn in (stop, "textbook")]
    assert rows["16 px"] == pytest.approx((1500, 10, 5, 2))
    assert rows["32 px"][2] == pytest.approx(1 / 5.5)  # the median of 1 to 10


def test_work_is_timed_after_a_warm_up_until_the_limit():
    now, calls = [0.0], []

    def work():
        now[0] += [100, 1, 5, 1, 9][len(calls)]
        calls.append(now[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cpu.CLOCKS, "wall", lambda: now[0])
        assert median_seconds(work, repeats=3, limit=100.0) == 1
        assert len(calls) == 4
        assert median_seconds(work, warmups=0, repeats=3, limit=2.0) == 9
        assert len(calls) == 5


def test_a_result_is_written_and_shown_as_markdown(tmp_path, monkeypatch):
    rows = [("step", 1234, 1234.5, 12.34, 1.234, None)]
    columns = ["ms", "calls", "slow", "fast", "ratio", "note"]
    path = table.write("AMD (R) 9", [Table(columns, rows)], tmp_path / "results", failures=[])
    assert path.name.endswith("-AMD-R-9.json")
    title, text = table.of_file(path).split("\n\n")
    assert title.startswith("**AMD (R) 9**, PyTorch ")
    assert text == (
        "| ms | calls | slow | fast | ratio | note |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| step | 1,234 | 1,234 | 12.3 | 1.23 |  |"
    )
    monkeypatch.setattr(table, "FOLDER", path.parent)
    (path.parent / "2000-01-01-AMD-R-9.json").write_text(path.read_text("utf-8"))
    assert table.newest() == [path]


def test_yaw_errors_are_about_the_turn_that_most_cars_share():
    assert inversion.about_shared_turn([91, 90, 270, 89]) == [1, 0, 180, 1]
    assert inversion.about_shared_turn([179, -179, 180, 180]) == [1, 1, 0, 0]
    assert inversion.about_shared_turn([]) == []


def test_fits_are_saved_one_by_one_and_go_on(tmp_path, tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(
        inversion, "FitOptions",
        lambda: FitOptions(num_candidates=2, num_starts=1, latent_steps=1, film_steps=1),
    )  # fmt: skip
    monkeypatch.setattr(inversion, "CONSISTENCY_SIZE", 8)
    Image.new("RGB", (16, 16), (90, 60, 30)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        archive.writestr("poses.csv", "file,pitch,yaw\na.png,1.5,1.25\n")
    result = tmp_path / "result.json"
    words = [tiny_run / "generator.pth", result, "--num_searches", "1", "--num_photos", "1",
             "--tune", "1", "--photos", tmp_path / "photos.zip"]  # fmt: skip
    inversion.main([str(word) for word in words])
    first = json.loads(result.read_text())
    assert [len(rows) for rows in first["rows"].values()] == [1, 1]
    (row,) = first["rows"]["held out"]
    assert (row["true_pitch"], row["true_yaw"]) == (1.5, 1.25)
    assert row["iou0.5_before"] == 1
    words[words.index("1")] = "2"
    inversion.main([str(word) for word in words])
    second = json.loads(result.read_text())
    assert len(second["rows"]["search"]) == 2
    assert second["rows"]["search"][:1] == first["rows"]["search"]
    assert second["rows"]["held out"] == first["rows"]["held out"]
    capsys.readouterr()
    inversion.main(["--table", str(result)])
    said = capsys.readouterr().out
    decibels = f"{row['psnr_before']:.1f} → {row['psnr_after']:.1f}"
    assert f"| PSNR at the photo's view, dB | {decibels} |" in said


def test_a_benchmark_works_in_a_process_of_its_own():
    assert cpu.alone(os.getpid) != os.getpid()


def test_every_part_of_the_cpu_benchmark_gives_its_table(tmp_path, monkeypatch):
    tiny = (*cpu.SMALL, "hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "0.img_size=8",
            "discriminator_width=8", "0.num_steps=3")  # fmt: skip
    cases = {
        "FIELDS": {"field": cpu.Case("Demo", 12, has_gradient=True)},
        "DEMO_STEPS": {"trained": cpu.Case("Demo", overrides=tiny[2:], is_trained=True)},
        "WIDE_STEPS": {cpu.PROFILED: cpu.Case("CelebA", overrides=tiny, is_emptied=True)},
    }
    for name, value in {
        **cases,
        "CASES": {title: case for group in cases.values() for title, case in group.items()},
        **{"alone": lambda work, *args: work(*args), "_prepare": lambda variant: None},
        **{"PROCESSES": 1, "LIMIT_SIZE": 16, "NUM_IMAGES": 4, "BATCH": 2},
    }.items():
        monkeypatch.setattr(cpu, name, value)
    for name, value in {"SIZE": 8, "STEPS": 3, "CASES": [(8, 3, 2)]}.items():
        monkeypatch.setattr(view, name, value)
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    threads = torch.get_num_threads()
    try:
        assert cpu.main([]) == 0
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.iterdir()
    first, views, rates, sizes, profiles = json.loads(path.read_text("utf-8"))["tables"]
    assert [row[0] for row in first["rows"]] == ["field", "trained", cpu.PROFILED]
    for _, textbook, exact, ratio, bf16, bf16_ratio in first["rows"]:
        assert ratio == pytest.approx(textbook / exact)
        assert bf16_ratio == pytest.approx(textbook / bf16)
    assert len(views["rows"]) == 2
    assert all(rate > 0 for _, rate in rates["rows"])
    assert sizes["rows"][0][:3] == [8, "3 + 3", 2]
    assert [row[0] for row in profiles["rows"]] == list(cpu.VARIANTS)


TINY_SIZES = Sizes(
    matrices=(16,),
    checked_points=7,
    objects=2,
    field_points=24,
    overrides=("0.img_size=4", "0.batch_size=4", "hidden_dim=8", "num_layers=2",
               "discriminator_width=8"),
    larger=("0.img_size=8",),
    picture=8,
    picture_steps=3,
    picture_chunk=64,
    repeats=2,
    training_steps=3,
)  # fmt: skip


def test_every_section_runs(capsys, monkeypatch):
    loose = {torch.bfloat16: (0.1, 1.0)}  # the reference under autocast
    monkeypatch.setattr(gpu_checks, "TOLERANCE", loose)
    monkeypatch.setattr(EmbeddingPiGAN128, "embedding_shape", (32, 5, 0.1))
    saved = []
    bench = Bench(torch.device("cpu"), TINY_SIZES, save=lambda b: saved.append(len(b.rows)))
    gpu.measure(bench)
    capsys.readouterr()
    assert bench.failures == []
    assert len(set(saved)) == len(saved) - 1 > 5  # the profile adds no row
    assert bench.results["training step, ratio"] > 0
    assert bench.results["picture, dB against float32"] > 20
    assert bench.results["picture, skipping, images/s"] > 0
    assert bench.results["waits for the device in a step"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets no kernel")
def test_a_wrong_kernel_of_rays_is_a_failure(capsys, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    bench = Bench(torch.device("cpu"), TINY_SIZES)
    gpu_checks.check_rays(bench)
    assert bench.results["rays"]["gradient"] < 1e-5
    right = fast_rays.importance_depths
    monkeypatch.setattr(
        fast_rays, "importance_depths", lambda *args, **more: right(*args, **more) + 0.01
    )
    with pytest.raises(RuntimeError, match="errors of the rays' kernels are too large"):
        gpu_checks.check_rays(bench)


def test_failures_are_counted_and_the_rest_goes_on_even_if_memory_cannot_be_freed(
    capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    bench = Bench(torch.device("cuda"), TINY_SIZES)
    bench.section("Something", fail)
    bench.section("The next", lambda _: None)
    assert bench.failures == ["Something", "The next"]
    printed = capsys.readouterr().out
    assert "FAILED: Something" in printed
    assert printed.count("FAILED") == 3


def test_what_no_longer_fits_into_the_time_is_skipped(capsys):
    saved, done = [], []
    bench = Bench(
        torch.device("cpu"), TINY_SIZES, limit=100, save=lambda b: saved.append(b.skipped)
    )
    bench.section("Long", done.append, 101)
    bench.section("Short", done.append, 50)
    assert done == [bench]
    assert bench.skipped == ["Long"]
    assert len(saved) == 2
    assert "SKIPPED: takes about 101 s, and 100 s are left" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gpu_benchmark_trains_on_pictures_resumes_and_renders(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 90, 30)).save(tmp_path / f"{number}.png")
    overrides = (*TINY_SIZES.overrides, "preview_size=8", "mapping_hidden_dim=8")
    sizes = dataclasses.replace(TINY_SIZES, picture=64, overrides=overrides)
    bench, run = Bench(torch.device("cpu"), sizes), gpu.PictureRun(tmp_path, tmp_path / "out")
    run.train(bench)
    run.resume(bench)
    run.render(bench)
    before, after = bench.results["resumed"]
    assert (before, after) == (3, 23)
    assert bench.results["training on pictures"]["steps"] == before
    assert list(run.output_dir.glob("*.png"))
    for precision in ("exact", "fast"):
        assert (tmp_path / "out" / f"rendered_{precision}" / "sheet.png").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("how", [["benchmarks/gpu.py"], ["-m", "benchmarks.gpu"]])
def test_without_a_device_one_line_says_so(how, tmp_path):
    done = subprocess.run(
        [sys.executable, *how, "--output_dir", tmp_path / "results"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("no CUDA device: nothing was measured")
    assert not (tmp_path / "results").exists()


TINY = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4", "0.num_steps=3",
        "discriminator_width=8", "0.img_size=8", "0.batch_size=4", "0.batch_split=2",
        "r1_interval=2", "density_noise_steps=0", "fade_steps=0", "grad_clip=1e9",
        "shares_fakes=false"]  # fmt: skip


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("loss", [[], ["gan_loss=relativistic", "r2_lambda=0.3"]])
@pytest.mark.parametrize("name", ["Demo", "CelebA"])
def test_the_textbook_step_has_the_terms_and_gradients_of_ours(name, step, loss):
    curriculum = curriculums.load(name, overrides=[*TINY, *loss])
    real = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for kind in (AdversarialGame, TextbookGame):
        torch.manual_seed(0)
        networks = curriculum.build_generator(), curriculum.build_discriminator()
        game = kind(*networks, OptimizerOptions(), Precision(), seed=0)
        terms = game.step(real, curriculum.at(step))
        grown = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
        results.append((terms, grown))
    (terms, ours), (textbook_terms, textbook) = results
    assert set(terms) == set(textbook_terms)
    for key, value in textbook_terms.items():
        torch.testing.assert_close(terms[key], value, rtol=1e-4, atol=1e-6)
    assert len(ours) == len(textbook)
    for one, other in zip(ours, textbook, strict=True):
        assert (one - other).norm() <= 2e-3 * other.norm() + 1e-6


def test_the_textbook_field_modulates_in_half_precision_as_the_published_code():
    field = twin_of(TALLSIREN(z_dim=4, hidden_dim=8, num_layers=2, mapping_hidden_dim=8))
    film = field.mapping_network(torch.randn(1, 4))
    taken = collections.Counter()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.sin.default:
                taken[args[0].dtype] += 1
            return func(*args, **(kwargs or {}))

    points, directions = torch.rand(1, 5, 3), torch.rand(1, 1, 3)
    with Record(), torch.autocast("cpu", dtype=torch.bfloat16):
        field(points, directions, film)
    assert taken == {torch.bfloat16: 3}
    with Record():
        field(points, directions, film)
    assert taken == {torch.bfloat16: 3, torch.float32: 3}


def test_fast_pictures_of_the_shipped_generator_agree_with_exact_ones(monkeypatch):
    left_out = view.measure_trained(size=32)["psnr_db"]
    assert left_out > 100  # its field is narrow: only empty space is left out
    monkeypatch.setattr(fused_cpu, "WIDE", 1)
    monkeypatch.setitem(viewing.FAST_DTYPES, "cpu", torch.bfloat16)  # on all processors
    assert 45 < view.measure_trained(size=32)["psnr_db"] < left_out  # and rounded like wide ones


def test_kid_is_the_mean_kernel_of_different_pairs():
    some, others = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def mean(x, y, is_own):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not is_own or i != j]
        return sum((float(x[i] @ y[j]) / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(some, some, True) + mean(others, others, True) - 2 * mean(some, others, False)
    assert recipes.kid(some, others) == pytest.approx(1000 * expected)


def test_a_comparison_goes_on_where_it_was_stopped_and_makes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    monkeypatch.setattr(recipes, "RECIPES", {"old": ["r1_lambda=1"], "new": ["r1_lambda=2"]})
    monkeypatch.setattr(recipes, "lite_features", lambda: None)
    trained = []

    def train(job, run, stop):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((job.recipe, job.set_name, stop))
        return 40.0

    monkeypatch.setattr(recipes, "train", train)
    kids = iter([30.0, 20.0, 25.0, 15.0, 9.0, 8.0])
    monkeypatch.setattr(recipes, "measure", lambda *_: next(kids))
    words = ["--minutes", "1", "--part", "100", "--output_dir", str(tmp_path / "runs")]
    with pytest.raises(KeyboardInterrupt):
        recipes.main(words)
    trained[:] = trained[-1:]
    recipes.main(words)
    assert trained == [("new", "toycars", 100), ("new", "toycars", 200)]
    columns, rows = recipes.table(tmp_path / "recipes", 1)  # the second part ends after 80 s
    machine = table.processor()
    assert columns[1:] == ["processor", "toycars", "minutes", "runs"]
    assert rows == [("new", machine, 25.0, 2 / 3, 1), ("old", machine, 30.0, 2 / 3, 1)]


def test_a_comparison_of_first_steps_ends_there_and_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    monkeypatch.setattr(recipes, "lite_features", lambda: None)
    monkeypatch.setattr(recipes, "train", lambda job, run, stop: 10.0)
    monkeypatch.setattr(recipes, "measure", lambda *_: 20.0)
    recipes.main(["--steps", "150", "--part", "100", "--recipes", "Demo", "--seeds", "1", "2"])
    assert not list((tmp_path / "recipes").glob("*.json"))
    _, rows = recipes.table(tmp_path / "recipes" / "150_steps", 24)
    assert rows == [("Demo", table.processor(), 20.0, 1 / 3, 2)]


def test_kid_is_measured_at_twice_the_size_that_was_trained_last(tmp_path, monkeypatch):
    job = recipes.Job("tiny", "toycars", ["hidden_dim=8", "num_layers=1"], None, 0)
    step, sizes = 1500, []
    saved = SimpleNamespace(last_step=step - 1, generator=None)
    monkeypatch.setattr(recipes.checkpoints, "load_generator", lambda path: saved)
    monkeypatch.setattr(
        recipes, "sample_image", lambda g, i, o: torch.zeros(3, *2 * [o.render.image_size])
    )

    def open_images(options, size, *, cache_dir):
        assert options.resize == "antialias"
        return SimpleNamespace(spread=lambda count: torch.zeros(count, 3, size, size))

    monkeypatch.setattr(recipes.datasets, "open_images", open_images)

    def features(images):
        sizes.append(images.shape[-1])
        return torch.randn(len(images), 4, dtype=torch.float64)

    recipes.measure(job, tmp_path / "run", 4, features)
    assert sizes == [16, 16]  # rendered at 32; the second stage would be 32


def test_a_set_of_a_comparison_needs_known_cameras():
    with pytest.raises(UsageError, match="CAMERAS one of cars, faces"):
        recipes.main(["--images", "mine=boats:x.zip", "--recipes"])


def test_samples_are_compared_with_a_converged_render(capsys, monkeypatch):
    monkeypatch.setattr(samples, "SIZE", 16)
    samples.main(["--samples", "14", "--many", "80"])
    lines = capsys.readouterr().out.splitlines()
    colors, depths = zip(*([float(cell) for cell in line.split("|")[3:5]] for line in lines[2:]),
                         strict=True)  # fmt: skip
    assert lines[2].startswith("| as they are | 14 + 14 |")
    assert lines[3].startswith("| spread | 14 + 14 |")
    assert colors[0] < colors[1]
    assert depths[0] > depths[1]
