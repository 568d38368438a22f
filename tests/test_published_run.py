"""Training resumes from the seven files of a published run, which can also be converted."""

import shutil

import published_files
import pytest
import torch

import convert_checkpoint
import curriculums
import render_multiview_images
import train
from checkpoint_io import checkpoints, published_run
from config import curriculum
from config.stage import OptimizerOptions, Precision
from system.errors import UsageError
from training import state as run_state
from training.adversarial import AdversarialGame
from training.state import Progress

SOURCE = {
    **curriculums.CelebA,
    0: {"batch_size": 2, "num_steps": 3, "img_size": 8, "gen_lr": 1e-3, "disc_lr": 1e-3},
    "dataset": "ToyCars",
    "dataset_path": None,
    "num_images": 6,
    "discriminator": "CCSDiscriminator",
    "preview_size": 4,
    "weight_decay": 0.125,
}
FILE = f"Small = {SOURCE!r}\n"


@pytest.fixture
def small_file(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(FILE)
    return ["--curriculum", "Small", "--curriculum_file", str(file)]


def loaded(folder, source=SOURCE):
    """Load the game and progress from the published run in a folder."""
    run = published_run.open_run(folder)
    wanted = run.adapt(curriculum.build("Small", source))
    game = AdversarialGame(
        wanted.build_generator(),
        wanted.build_discriminator(),
        wanted.optimizer_options(),
        Precision(),
        seed=0,
    )
    return game, run_state.load_state(run_state.published_content(run, wanted), game)


def assert_moments(optimizer, network, made, published_network):
    """Assert that each parameter has the moments of its published position."""
    own = dict(network.named_parameters())
    for index, (name, _) in enumerate(published_network.named_parameters()):
        state = optimizer.state.get(own[name])
        wanted = made["state"].get(index)
        assert (state is None or not state) == (wanted is None), name
        if wanted is not None:
            assert float(state["step"]) == 42
            assert state["step"].dtype == torch.float32
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(state[moment], wanted[moment]), name
                assert state[moment].stride() == own[name].stride()  # fused Adam needs it


@pytest.mark.parametrize("unique_lr", [False, True])
@pytest.mark.parametrize(
    "critic", ["StridedDiscriminator", "CCSDiscriminator", "ProgressiveEncoderDiscriminator"]
)
def test_everything_of_the_seven_files_is_taken_over(tmp_path, critic, unique_lr):
    made = published_files.write_run(tmp_path, critic=critic, num_groups=2 if unique_lr else 1)
    source = {**SOURCE, "discriminator": critic, "unique_lr": unique_lr}
    game, progress = loaded(tmp_path, source)
    assert progress == Progress(step=42, images_seen=0)
    for name in ("generator", "discriminator"):
        network = getattr(game, name)
        state = made[name].state_dict()
        assert list(network.state_dict()) == list(state)
        assert all(torch.equal(v, state[n]) for n, v in network.state_dict().items())
    for average, shadow in zip(
        game.averages, (made["ema"].shadow_params, made["ema2"]["shadow_params"]), strict=True
    ):
        assert average.num_updates == 42
        assert all(torch.equal(*pair) for pair in zip(average.shadow, shadow, strict=True))
    assert [average.decay for average in game.averages] == [0.999, 0.9999]
    assert_moments(game.generator_optimizer, game.generator, made["optimizer_G"], made["generator"])
    assert_moments(
        game.discriminator_optimizer, game.discriminator, made["optimizer_D"],
        made["discriminator"])  # fmt: skip
    for optimizer in (game.generator_optimizer, game.discriminator_optimizer):
        for group in optimizer.param_groups:  # this run's own, not the file's
            assert group["betas"] == (0.0, 0.9)
            assert all(isinstance(beta, float) for beta in group["betas"])
            assert (group["fused"], group["weight_decay"]) == (True, 0.125)
    assert len(game.generator_optimizer.param_groups) == (2 if unique_lr else 1)


def test_the_loss_scale_is_taken_over_where_there_is_one(tmp_path):
    published_files.write_run(tmp_path)
    run = published_run.open_run(tmp_path)
    wanted = run.adapt(curriculum.build("Small", SOURCE))
    content = run_state.published_content(run, wanted)
    game, _ = loaded(tmp_path)
    game.scaler = torch.amp.GradScaler("cpu", growth_interval=50)
    run_state.load_state(content, game)
    state = game.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"], state["growth_interval"]) == (1024, 7, 50)
    published_files.save({}, tmp_path / "scaler.pth")
    run = published_run.open_run(tmp_path)
    run_state.load_state(run_state.published_content(run, wanted), game)
    assert game.scaler.state_dict()["scale"] == 1024


@pytest.mark.parametrize("is_scaled", [True, False])
def test_only_the_scale_of_a_scaled_run_is_saved(is_scaled):
    built = curriculum.build("Small", SOURCE)
    precision = Precision(autocast_dtype=torch.float16, is_scaled=is_scaled)
    options = OptimizerOptions()
    networks = built.build_generator(), built.build_discriminator()
    game = AdversarialGame(*networks, options, precision, seed=0)
    game.scaler = torch.amp.GradScaler("cpu", init_scale=256.0 if is_scaled else 1.0)
    content = run_state.content_of(game, built, Progress(3, 6))
    game.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)  # as one in float16 begins
    run_state.load_state(content, game)
    assert game.scaler.get_scale() == (256 if is_scaled else 2**15)


def test_steps_that_were_not_counted_are_the_generators(tmp_path):
    made = published_files.write_run(tmp_path)
    for name in ("ema", "ema2"):
        average = published_files.ExponentialMovingAverage(made["generator"].parameters(), 0.999)
        average.num_updates = None
        published_files.save(average, tmp_path / f"{name}.pth")
    game, progress = loaded(tmp_path)
    assert progress.step == 40
    assert [average.num_updates for average in game.averages] == [40, 40]


def test_the_scale_of_space_goes_into_the_curriculum(tmp_path):
    made = published_files.write_run(tmp_path)
    made["generator"].siren.gridwarper.scale_factor = 5.0
    published_files.save(made["generator"], tmp_path / "generator.pth")
    game, _ = loaded(tmp_path)
    assert game.generator.siren.box_side == pytest.approx(0.4)


@pytest.mark.parametrize("name", published_run.FILES)
def test_a_missing_file_is_named(tmp_path, small_file, name):
    published_files.write_run(tmp_path / "published")
    (tmp_path / "published" / name).unlink()
    with pytest.raises(UsageError, match=f"seven files are needed; missing: {name}. "):
        train.main(
            [*small_file, "--load_dir", str(tmp_path / "published"), "--output_dir",
             str(tmp_path / "out"), "--device", "cpu"])  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_folder_of_our_exports_is_no_published_run(tmp_path, tiny_run, small_file):
    with pytest.raises(UsageError, match="holds only exported networks"):
        train.main([*small_file, "--load_dir", str(tiny_run), "--output_dir", str(tmp_path / "o")])


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("optimizer_G.pth", {"state": {}, "param_groups": []}, "is of 0 parameters, the network"),
        ("optimizer_G.pth", {"state": {}}, "lacks 'param_groups'"),
        ("optimizer_D.pth", [], "not the state dict of an optimizer"),
        ("scaler.pth", published_files.optimizer_state([]), "lacks 'scale'"),
        ("ema2.pth", {"shadow_params": []}, "holds 0 averages for"),
        ("ema.pth", {"weights": []}, "holds a dict of weights"),
        ("discriminator.pth", published_files.generator(), "published ImplicitGenerator3d"),
    ],
)
def test_a_file_that_holds_something_else_is_one_line(tmp_path, file, content, complaint):
    published_files.write_run(tmp_path)
    published_files.save(content, tmp_path / file)
    with pytest.raises(UsageError, match=f"{file}: .*{complaint}"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s["state"].update({99: s["state"][0]}), "a parameter 99, which is unknown"),
        (lambda s: s["state"].update({0: 3}), "without moments of parameter 0"),
        (lambda s: s["state"][0].pop("step"), "without a step for parameter 0"),
        (lambda s: s["state"][0].update(step=-1), "without a step for parameter 0"),
        (lambda s: s["state"][1].pop("exp_avg"), "no tensor as exp_avg of parameter 1"),
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(3)), r"shape \[3\], not \[8\]"),
        (lambda s: s["state"][1]["exp_avg_sq"].fill_(float("inf")), "not finite, in exp_avg_sq"),
    ],
)
def test_damaged_moments_are_one_line(tmp_path, change, complaint):
    made = published_files.write_run(tmp_path)
    change(made["optimizer_G"])
    published_files.save(made["optimizer_G"], tmp_path / "optimizer_G.pth")
    with pytest.raises(UsageError, match=f"optimizer_G.pth: .*{complaint}"):
        loaded(tmp_path)


def test_other_networks_than_the_curriculums_are_named(tmp_path):
    published_files.write_run(tmp_path, model="TALLSIREN")
    with pytest.raises(UsageError, match="was trained with TALLSIREN, curriculum Small has SPAT"):
        loaded(tmp_path)


def test_training_goes_on(tmp_path, small_file, monkeypatch, capsys):
    published_files.write_run(tmp_path / "published")
    before = {p.name: p.read_bytes() for p in (tmp_path / "published").iterdir()}
    cache = ["--cache_dir", str(tmp_path / "cache"), "--device", "cpu", "--max_steps", "44"]
    on = [*small_file, *cache, "--load_dir", str(tmp_path / "published")]
    opened, open_run = [], published_run.open_run
    monkeypatch.setattr(
        published_run, "open_run", lambda path: opened.append(path) or open_run(path)
    )
    assert train.main([*on, "--output_dir", str(tmp_path / "out")]) == 0
    assert len(opened) == 1
    assert capsys.readouterr().err.count("taken from the files: latent_dim 6 (not 256)") == 1
    state = checkpoints.read(tmp_path / "out" / "training_state.pth", "training_state")
    assert state["step"] == 44
    assert state["averages"][0]["num_updates"] == 44
    assert {float(entry["step"]) for entry in state["generator_optimizer"]["state"].values()} == {
        44
    }
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "published").iterdir()}
    # By way of a converted run it is the same.
    convert_checkpoint.main(
        [str(tmp_path / "published"), str(tmp_path / "converted"), *small_file])  # fmt: skip
    widths = ["hidden_dim=8", "num_layers=2", "latent_dim=6", "mapping_hidden_dim=8",
              "discriminator_width=8"]  # fmt: skip
    on = [*small_file, *cache, "--load_dir", str(tmp_path / "converted")]
    on += [text for width in widths for text in ("--set", width)]
    assert train.main([*on, "--output_dir", str(tmp_path / "out2")]) == 0
    again = checkpoints.read(tmp_path / "out2" / "training_state.pth", "training_state")
    for name, value in state["generator"].items():
        assert torch.equal(again["generator"][name], value), name


def test_a_converted_run_is_ours(tmp_path, small_file, capsys):
    made = published_files.write_run(tmp_path / "in")
    convert_checkpoint.main([str(tmp_path / "in"), str(tmp_path / "out"), *small_file])
    assert "training_state.pth generator.pth discriminator.pth ema.pth ema2.pth" in (
        capsys.readouterr().out
    )
    saved = checkpoints.load_generator(tmp_path / "out" / "generator.pth", ema="none")
    assert not saved.is_published
    assert (saved.curriculum.name, saved.step) == ("Small", 42)
    for (name, value), wanted in zip(
        saved.generator.named_parameters(), made["generator"].parameters(), strict=True
    ):
        assert torch.equal(value, wanted), name
    ema = checkpoints.load_generator(tmp_path / "out" / "generator.pth", ema="ema2")
    for value, wanted in zip(
        ema.generator.parameters(), made["ema2"]["shadow_params"], strict=True
    ):
        assert torch.equal(value, wanted)
    state = checkpoints.read(tmp_path / "out" / "training_state.pth", "training_state")
    assert state["scaler"]["scale"] == 1024


def test_a_converted_generator_brings_what_lies_beside_it(tmp_path):
    published_files.write_run(tmp_path / "in")
    for name in ("optimizer_D", "ema2"):
        (tmp_path / "in" / f"{name}.pth").unlink()
    out = tmp_path / "out"
    for source in (tmp_path / "in", tmp_path / "in" / "generator.pth"):
        shutil.rmtree(out, ignore_errors=True)
        convert_checkpoint.main([str(source), str(out), "--curriculum", "cats"])
        names = {path.name for path in out.iterdir()}
        assert names == {"generator.pth", "ema.pth", "discriminator.pth"}
    saved = checkpoints.load_generator(out / "generator.pth")
    assert (saved.curriculum.name, saved.step, saved.average) == ("Cats", 42, "ema")
    assert saved.curriculum.settings.fov == 12
    own, judge = checkpoints.load_discriminator(out / "discriminator.pth", saved.curriculum)
    assert own.settings.discriminator == "CCSDiscriminator"
    assert judge(torch.zeros(1, 3, 8, 8), 1.0).logits.isfinite().all()


def test_a_run_of_cats_is_converted_gone_on_with_and_rendered(tmp_path, small_file, capsys):
    made = published_files.write_run(tmp_path / "in", critic="StridedDiscriminator")
    shapes = [tuple(p.shape) for n, p in made["discriminator"].named_parameters() if "pose" in n]
    assert shapes == [(8, 2), (8,)]
    out = tmp_path / "out"
    assert convert_checkpoint.main([str(tmp_path / "in"), str(out), "--curriculum", "Cats"]) == 0
    said = capsys.readouterr().err
    assert "discriminator_width 8 (not None)" in said
    assert "discriminator StridedDiscriminator" not in said  # that is the curriculum's own
    render_multiview_images.main(
        [str(out / "generator.pth"), "--seeds", "0", "--image_size", "4", "--device", "cpu",
         "--ray_step_multiplier", "1", "--output_dir", str(tmp_path / "views")])  # fmt: skip
    assert (tmp_path / "views" / "grid_0.png").is_file()
    on = [*small_file, "--load_dir", str(tmp_path / "in"), "--max_steps", "43", "--device", "cpu",
          "--set", "discriminator=StridedDiscriminator", "--cache_dir", str(tmp_path / "cache"),
          "--output_dir", str(tmp_path / "on")]  # fmt: skip
    assert train.main(on) == 0
    state = checkpoints.read(tmp_path / "on" / "training_state.pth", "training_state")
    before = made["discriminator"].state_dict()
    assert torch.equal(state["discriminator"]["pose_layer.weight"], before["pose_layer.weight"])
    assert not torch.equal(state["discriminator"]["final_layer.weight"],
                           before["final_layer.weight"])  # fmt: skip


def test_a_folder_is_converted_as_its_files_say(tmp_path, capsys):
    published_files.write_run(
        tmp_path / "in", model="TALLSIREN", critic="ProgressiveEncoderDiscriminator"
    )
    convert_checkpoint.main([str(tmp_path / "in"), str(tmp_path / "out"), "--curriculum", "CelebA"])
    said = capsys.readouterr().err
    assert "its networks differ from those of curriculum CelebA; taken from the files" in said
    assert "model TALLSIREN (not SPATIALSIRENBASELINE)" in said
    assert "discriminator ProgressiveEncoderDiscriminator (not CCSEncoderDiscriminator)" in said
    state = checkpoints.read(tmp_path / "out" / "training_state.pth", "training_state")
    assert state["curriculum"]["model"] == "TALLSIREN"
    saved = checkpoints.load_generator(tmp_path / "out" / "generator.pth")
    assert (saved.curriculum.settings.model, saved.curriculum.settings.fov) == ("TALLSIREN", 12)


def with_old_pose_layer(state):
    """Return a state dict as older versions wrote it, with a convolution as pose_layer."""
    width = len(state["pose_layer.bias"])
    layer = {"pose_layer.weight": torch.ones(2, width, 2, 2), "pose_layer.bias": torch.ones(2)}
    return {**state, **layer}


def test_older_files_of_ours_have_another_pose_layer(tmp_path):
    published_files.write_run(tmp_path / "in")
    game, progress = loaded(tmp_path / "in")
    wanted = published_run.open_run(tmp_path / "in").adapt(curriculum.build("Small", SOURCE))
    run_state.save_state(tmp_path, game, wanted, progress)
    for kind, key in (("training_state", "discriminator"), ("discriminator", "state")):
        path = tmp_path / f"{kind}.pth"
        content = checkpoints.read(path, kind)
        content[key] = with_old_pose_layer(content[key])
        checkpoints.save(path, kind, content)
    _, judge = checkpoints.load_discriminator(tmp_path / "discriminator.pth", wanted)
    before = {name: value.clone() for name, value in game.discriminator.state_dict().items()}
    run_state.load_state(run_state.read_state(tmp_path / "training_state.pth", wanted), game)
    for network in (judge, game.discriminator):
        for name, value in network.state_dict().items():
            is_unused = name.startswith("pose_layer.")
            assert torch.equal(value, before[name] * 0 if is_unused else before[name]), name


def test_converting_replaces_nothing(tmp_path):
    published_files.write_run(tmp_path / "in")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    with pytest.raises(UsageError, match=r"holds generator.pth already; give a new folder"):
        convert_checkpoint.main([str(tmp_path / "in" / "generator.pth"), str(tmp_path / "in")])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    inside_a_file = tmp_path / "in" / "ema.pth" / "out"
    with pytest.raises(UsageError, match="cannot be made"):
        convert_checkpoint.main([str(tmp_path / "in" / "generator.pth"), str(inside_a_file)])


def test_converting_what_is_ours_is_refused(tmp_path, tiny_run):
    with pytest.raises(UsageError, match="is in our format already"):
        convert_checkpoint.main([str(tiny_run / "generator.pth"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
