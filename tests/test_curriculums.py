"""Curricula: published figures, strict parsing, schedules at hand-picked steps."""

import math
import sys

import pytest
import torch

import curriculums
import train
from generators.cameras import sample_poses
from system.errors import UsageError


@pytest.mark.parametrize("name", curriculums.PRESETS)
def test_every_preset_parses_and_builds(name):
    curriculum = curriculums.load(name)
    assert curriculum.end is not None
    assert curriculum.build_generator().z_dim == curriculum.settings.latent_dim
    sizes = curriculum.build_discriminator().image_sizes()
    assert {stage.img_size for _, stage in curriculum.stages} <= set(sizes)


@pytest.mark.parametrize(
    ("typed", "known"), [("CATS", "Cats"), ("Carla", "CARLA"), ("celeba", "CelebA")]
)
def test_names_match_whatever_their_case(typed, known):
    assert curriculums.load(typed).name == known


def test_published_figures():
    celeba, carla, cats = (curriculums.load(name) for name in ("CelebA", "CARLA", "Cats"))
    stage = celeba.at(0)
    assert (stage.batch_size, stage.batch_split, stage.render.num_steps) == (56, 2, 12)
    assert (stage.render.near, stage.render.far, stage.render.fov_degrees) == (0.88, 1.12, 12)
    assert (stage.generator_lr, stage.discriminator_lr) == (6e-5, 2e-4)
    assert (stage.r1_lambda, stage.grad_clip, stage.pos_lambda) == (0.2, 10, 15)
    assert stage.render.background == "black"
    assert celeba.evaluation_render(0).background == "last_sample"
    growing = [(start, s.img_size, s.batch_size, s.batch_split) for start, s in carla.stages]
    assert growing == [(0, 32, 30, 1), (10_000, 64, 14, 2), (55_000, 128, 10, 5)]
    assert carla.at(0).render.background == "white"
    assert carla.poses().center()[0] == pytest.approx(1.0148, abs=1e-4)
    assert carla.settings.dataset_path.endswith(".png")  # the published paths were swapped
    assert (cats.at(0).poses.kind, cats.at(0).render.num_steps) == ("uniform", 24)
    assert celeba.end == carla.end == cats.end == 200_000


def test_the_paper_grows_from_32_to_128():
    for name in ("CelebA128", "Cats128"):
        sizes = [stage.img_size for _, stage in curriculums.load(name).stages]
        assert (sizes[0], sizes[-1]) == (32, 128)


@pytest.mark.parametrize(
    ("step", "alpha"),
    [(0, 0.0), (5000, 0.5), (10_000, 0.0), (15_000, 0.5), (20_000, 1.0), (55_000, 0.0)],
)
def test_each_new_size_fades_in(step, alpha):
    assert curriculums.load("CARLA").at(step).alpha == pytest.approx(alpha)


def test_an_equal_size_does_not_fade_again():
    growing = curriculums.load("CelebA128")
    assert growing.at(69_999).alpha == 1
    assert growing.at(70_000).alpha == 1  # a new stage, of the same size
    assert growing.at(100_000).alpha == 0


def test_schedules_at_hand_picked_steps():
    celeba = curriculums.load("CelebA")
    assert celeba.at(0).render.density_noise == 1
    assert celeba.at(1250).render.density_noise == pytest.approx(0.75)
    assert celeba.at(5000).render.density_noise == 0
    assert celeba.evaluation_render(0).density_noise == 0
    assert celeba.at(2000).topk_share == pytest.approx(0.99)
    assert celeba.at(20_000).topk_share == pytest.approx(0.99**10)
    assert celeba.at(150_000).topk_share == 0.6
    assert curriculums.load("CARLA").at(150_000).topk_share == 1


def test_training_draws_by_the_weights_as_they_are_and_renders_spread_them():
    celeba = curriculums.load("CelebA")
    assert not celeba.at(0).render.spreads_weights
    assert celeba.evaluation_render(0).spreads_weights
    assert celeba.preview_render(0, 8).spreads_weights
    assert celeba.preview_render(0, 8).surface_width is None
    assert curriculums.load("Demo").preview_render(0, 8).surface_width == 0.005


def test_our_recipe_shares_jitter_and_the_published_ones_do_not():
    assert curriculums.load("Demo").at(0).render.shares_jitter
    assert not curriculums.load("CelebA").at(0).render.shares_jitter
    assert curriculums.load("CelebA", overrides=["shares_jitter=true"]).at(0).render.shares_jitter


def test_overrides_are_typed_by_the_schema():
    curriculum = curriculums.load(
        "Demo", overrides=["r1_lambda=1", "0.batch_size=8", "white_back=false", "betas=(0.5, 0.9)"]
    )
    assert curriculum.at(0).batch_size == 8
    assert curriculum.at(0).r1_lambda == 1
    assert curriculum.at(0).render.background == "black"
    assert curriculum.settings.betas == (0.5, 0.9)
    assert curriculums.load("Demo").at(0).r1_lambda != 1  # the preset is untouched


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r1_lamda=1", "unknown key 'r1_lamda'. Did you mean 'r1_lambda'?"),
        ("0.batchsize=1", "Did you mean 'batch_size'?"),
        ("7.batch_size=1", "no stage 7; its stages are 0"),
        ("r1_lambda", "expected KEY=VALUE"),
        ("r1_lambda=x", "must be a number"),
        ("r1_lambda=-1", "must be at least 0"),
        ("r1_lambda=inf", "must be a"),
        ("0.batch_size=0", "must be at least 1"),
        ("topk_interval=0.3", "must be at least 1"),
        ("0.batch_size=1.5", "must be a whole number"),
        ("0.num_steps=2", "must be at least 3"),
        ("0.img_size=48", "has levels for 2, 4, 8"),
        ("0.batch_split=99", "batch_split 99 is more than batch_size"),
        ("white_back=1", "must be True or False"),
        ("clamp_mode=rellu", "Did you mean 'relu'?"),
        ("model=TALLSIRN", "Did you mean 'TALLSIREN'?"),
        ("betas=3", "must be a pair"),
        ("betas=(0, 0.9, 0.9)", "must be a pair"),
        ("discriminator_width=()", "must be a whole number, or it must be numbers in parentheses"),
        ("discriminator_width=(64, 0)", "must be at least 1"),
        ("ray_end=0.1", "need 0 <= near < far"),
        ("last_back=true", "white_back and last_back cannot"),
        ("eval_last_back=true", "white_back and eval_last_back cannot"),
        ("latent_dim=", "must be a whole number"),
    ],
)
def test_a_mistake_is_one_clear_line(text, message):
    with pytest.raises(UsageError) as error:
        curriculums.load("Demo", overrides=[text])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'CelebA'"):
        curriculums.load("Celeb")


def test_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from curriculums import Demo\n"
        "Mine = {**Demo, 'fov': 20, 0: {**Demo[0], 'batch_size': 3}}\n"
    )
    curriculum = curriculums.load("mine", file=file)
    assert (curriculum.at(0).batch_size, curriculum.settings.fov) == (3, 20)
    for text, message in (
        ("x = 1\n", "no dict with a stage 0"),
        ("raise ValueError('no')\n", "ValueError: no"),
        ("Mine = {0: {}}\n", "stage 0 is empty"),
        ("Mine = {0: {'batch_size': 1}}\n", "missing"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            curriculums.load("Mine", file=file)
    with pytest.raises(UsageError, match="no such file"):
        curriculums.load("Mine", file=tmp_path / "other.py")


def test_a_users_file_imports_its_neighbours_and_no_file_sees_those_of_another(tmp_path):
    for angle in (20, 30):
        folder = tmp_path / str(angle)
        folder.mkdir()
        (folder / "angles.py").write_text(f"FOV = {angle}")
        file = folder / "mine.py"
        file.write_text("import angles\nfrom curriculums import Demo\n"
                        "Mine = {**Demo, 'fov': angles.FOV}\n")  # fmt: skip
        assert curriculums.load("Mine", file=file).settings.fov == angle
    assert "angles" not in sys.modules
    assert str(folder) not in sys.path


def test_an_exact_name_wins_over_another_case(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from curriculums import CelebA\ncelebA = {**CelebA, 'fov': 20}\n")
    found = [curriculums.load(name, file=file).settings.fov for name in ("CelebA", "celebA")]
    assert found == [12, 20]
    with pytest.raises(UsageError, match="'celeba' may be CelebA or celebA"):
        curriculums.load("celeba", file=file)


def test_a_users_file_that_ends_the_program_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit('bye')")
    with pytest.raises(UsageError, match=r"mine\.py: SystemExit: bye"):
        curriculums.load("Mine", file=file)


def test_the_list_names_a_users_curricula_too(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from curriculums import Demo\nMine = {**Demo}\n")
    assert train.main(["--list_curricula", "--curriculum_file", str(file)]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["name", *curriculums.PRESETS, "Mine"]


def test_the_end_and_what_follows_it():
    source = dict(curriculums.Demo)
    last = max(key for key in source if isinstance(key, int))
    del source[last]
    assert curriculums.build("Mine", source).end is None
    source[100] = {}
    with pytest.raises(UsageError, match="stages follow after the empty one"):
        curriculums.build("Mine", source)
    with pytest.raises(UsageError, match="stage that begins at step 0"):
        curriculums.build("Mine", {k: v for k, v in source.items() if k != 0})


def test_networks_can_be_small():
    curriculum = curriculums.load(
        "CelebA",
        overrides=["hidden_dim=12", "num_layers=2", "mapping_hidden_dim=7", "box_side=0.5",
                   "discriminator_width=9", "latent_dim=5"],
    )  # fmt: skip
    siren = curriculum.build_generator().siren
    assert (siren.hidden_dim, len(siren.network), siren.box_side) == (12, 2, 0.5)
    assert siren.mapping_network.network[2].weight.shape == (7, 7)
    assert max(curriculum.build_discriminator().level_widths) == 9


def test_a_discriminator_can_be_narrower_where_images_are_larger():
    narrowing = curriculums.load("CARLA", overrides=["discriminator_width=(9, 7, 5)"])
    network = narrowing.build_discriminator()
    assert network.level_widths == [5, 5, 5, 5, 5, 5, 5, 7, 9]  # 512 px down to 2
    assert network.image_sizes()[-1] == 512
    assert network.final_layer.in_channels == 9
    assert network.layers[-1].network[0].conv.in_channels == 7 + 2  # and coordinates


def test_evaluation_poses_fall_back_to_the_training_ones():
    plain = curriculums.load("CelebA")
    assert plain.evaluation_poses() == plain.poses()
    other = curriculums.load(
        "CelebA", overrides=["sample_dist_eval=uniform", "h_stddev_eval=0.5"]
    ).evaluation_poses()
    assert (other.kind, other.yaw_spread, other.pitch_spread) == ("uniform", 0.5, 0.155)
    assert other.yaw_mean == pytest.approx(math.pi / 2)


@pytest.mark.parametrize(
    ("step", "last_step", "part"),
    [
        (0, 60_000, ("stage 1/3 (32 px)", 0, 10_000)),
        (9_999, 60_000, ("stage 1/3 (32 px)", 0, 10_000)),
        (10_000, 60_000, ("stage 2/3 (64 px)", 10_000, 55_000)),
        (57_500, 60_000, ("stage 3/3 (128 px)", 55_000, 60_000)),
        (57_500, None, ("stage 3/3 (128 px)", 55_000, None)),
    ],
)
def test_part_of_training_in_which_a_step_lies(step, last_step, part):
    assert curriculums.load("CARLA").part(step, last_step) == part


def demo(**changes):
    """Return the demo's dict with changes; a value of ... removes the key."""
    source = {**curriculums.Demo, **changes}
    return {key: value for key, value in source.items() if value is not ...}


def test_published_values_are_taken():
    normal = curriculums.build("Mine", demo(sample_dist="normal", sample_dist_eval="normal"))
    assert (normal.poses().kind, normal.evaluation_poses().kind) == ("gaussian", "gaussian")
    fixed = curriculums.build("Mine", demo(sample_dist=None, h_mean=1.2, v_mean=1.4))
    poses = sample_poses(fixed.at(0).poses, 3, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(poses.yaw, torch.full((3,), 1.2))
    torch.testing.assert_close(poses.pitch, torch.full((3,), 1.4))


def test_instance_noise_is_taken_and_said_to_have_no_effect(tmp_path, capsys):
    about = "note: instance_noise has no effect, as in the published code\n"
    for value, note in ((0, ""), (0.1, about)):
        file = tmp_path / "mine.py"
        file.write_text(
            "from curriculums import CelebA\n"
            f"Mine = {{**CelebA, 9: {{**CelebA[0], 'instance_noise': {value}}}}}"
        )
        curriculums.load("Mine", file=file)
        assert capsys.readouterr().err == note


@pytest.mark.parametrize("missing", [("topk_interval", "topk_v"), ("topk_interval",), ("topk_v",)])
def test_without_a_top_k_key_all_fakes_count(missing):
    source = demo(**{"topk_interval": 2000, "topk_v": 0.6, **dict.fromkeys(missing, ...)})
    assert curriculums.build("Mine", source).at(100_000).topk_share == 1


def test_a_stage_may_change_what_can_change():
    changes = {"h_stddev": 0.1, "pos_lambda": 3, "fade_steps": 7, "grad_clip": 2, "fov": 20,
               "density_noise_steps": 10, "r1_lambda": 5, "topk_v": 0.5, "z_lambda": 1}  # fmt: skip
    source = demo(**{}) | {1500: {**curriculums.Demo[1500], **changes}}
    curriculum = curriculums.build("Mine", source)
    first, second = curriculum.at(1499), curriculum.at(1503)
    assert second.poses.yaw_spread == 0.1
    assert first.poses.yaw_spread == pytest.approx(math.pi)
    assert (second.pos_lambda, second.z_lambda, second.grad_clip) == (3, 1, 2)
    assert (second.render.fov_degrees, second.r1_lambda) == (20, 5)
    assert second.alpha == pytest.approx(3 / 7)
    assert second.render.density_noise == 0
    assert (first.pos_lambda, first.render.fov_degrees) == (0, 30)


def test_a_key_may_be_in_all_stages_alone():
    stages = {start: {**stage, "grad_clip": 3} for start, stage in curriculums.Demo.items()
              if isinstance(start, int) and stage}  # fmt: skip
    assert curriculums.build("Mine", demo(grad_clip=...) | stages).at(2000).grad_clip == 3
    del stages[1500]["grad_clip"]
    with pytest.raises(UsageError, match="stage 1500: missing grad_clip"):
        curriculums.build("Mine", demo(grad_clip=...) | stages)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_dim", 8, "the networks are built once"),
        ("dataset_path", "x", "the pictures are opened once"),
        ("betas", (0, 0.9), "the optimizers are built once"),
        ("preview_size", 8, "previews and FID"),
    ],
)
def test_a_key_that_cannot_change_says_why(key, value, reason):
    with pytest.raises(UsageError, match=f"{key} cannot change between stages: {reason}"):
        curriculums.build("Mine", demo() | {1500: {**curriculums.Demo[1500], key: value}})
    with pytest.raises(UsageError, match=f"{key} cannot change between stages: {reason}"):
        curriculums.load("Demo", overrides=[f"1500.{key}={value}"])


def test_images_of_both_updates_cannot_be_split():
    with pytest.raises(UsageError, match="shares_fakes keeps all images of a step, batch_split 2"):
        curriculums.load("CelebA", overrides=["shares_fakes=true"])


@pytest.mark.parametrize("name", ["Mine", "Demo"])
def test_a_key_in_a_stage_and_for_the_whole_is_told_once(tmp_path, capsys, name):
    file = tmp_path / "mine.py"
    text = "from curriculums import Demo\nNAME = {**Demo, 0: {**Demo[0], 'fov': 9}}\n"
    file.write_text(text.replace("NAME", name))
    assert curriculums.load(name, file=file).at(0).render.fov_degrees == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: curriculum {name} sets fov in a stage")  # not those of Demo
    whole = text.replace("0: {**Demo[0], 'fov': 9}", "'r1_lambda': 9")
    file.write_text(whole.replace("NAME", name))
    curriculums.load(name, file=file)
    assert "sets r1_lambda in a stage" in capsys.readouterr().err
    file.write_text(text.replace("NAME", name))
    file.write_text(text.replace("NAME", name).replace("fov", "latent_dim"))
    with pytest.raises(UsageError, match="latent_dim cannot change"):
        curriculums.load(name, file=file)
    assert capsys.readouterr().err == ""
    file.write_text(f"from curriculums import Demo\n{name} = {{**Demo, 'fov': 20}}\n")
    curriculums.load(name, file=file)
    curriculums.load("Demo")
    assert capsys.readouterr().err == ""
