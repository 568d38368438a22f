"""Training is as published, number by number in float64.

`published_training` is the published training written once more.
"""

import published_files
import pytest
import torch
from published_training import judge, train

import curriculums
from checkpoint_io import published_run
from config import curriculum
from config.stage import Precision
from discriminators.discriminators import DISCRIMINATORS
from generators.sampling import Purpose, stream
from training import state as run_state
from training.adversarial import AdversarialGame
from training.ema import ExponentialMovingAverage

EXACTLY = {"atol": 1e-8, "rtol": 0}
KEYS = {"z_lambda": 3, "pos_lambda": 15, "topk_interval": 1, "topk_v": 0.6, "r1_lambda": 10,
        "grad_clip": 0.3, "gen_lr": 1e-3, "disc_lr": 2e-3}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@torch.no_grad()
def test_discriminators_at_every_size(name):
    made = published_files.discriminator(name).double()
    own = DISCRIMINATORS[name](latent_dim=published_files.Z_DIM, width=8).double()
    own.load_state_dict(made.state_dict())
    torch.set_default_dtype(torch.float64)
    for size in own.image_sizes():
        images = torch.randn(1, 3, size, size)
        wanted = judge(made, images, 0.3)
        assert wanted[1].numel() == ("Encoder" in name) * published_files.Z_DIM
        for found, value in zip(own(images, 0.3), wanted, strict=True):
            if value.numel():
                torch.testing.assert_close(found, value, **EXACTLY)


def doubled(made, game):
    """Change all numbers of the seven files, and of the game, to float64."""
    for network in (made["generator"], made["discriminator"], game.generator, game.discriminator):
        network.double()
    made["averages"] = [vars(made["ema"]), made["ema2"]]
    for shadows in (*(a["shadow_params"] for a in made["averages"]),
                    *(average.shadow for average in game.averages)):  # fmt: skip
        for shadow in shadows:
            shadow.data = shadow.data.double()
    for states in (made["optimizer_G"], made["optimizer_D"],
                   vars(game.generator_optimizer), vars(game.discriminator_optimizer)):  # fmt: skip
        for entry in states["state"].values():
            for moment in ("exp_avg", "exp_avg_sq"):
                entry[moment] = entry[moment].double()


@pytest.mark.parametrize(
    ("model", "critic"),
    [("SPATIALSIRENBASELINE", "CCSEncoderDiscriminator"),
     ("SPATIALSIRENBASELINE", "StridedDiscriminator"),
     ("TALLSIREN", "ProgressiveEncoderDiscriminator"),
     ("TALLSIREN", "ProgressiveDiscriminator")],
)  # fmt: skip
def test_steps_of_both_networks_after_a_published_run(tmp_path, model, critic):
    made = published_files.write_run(tmp_path, model=model, critic=critic)
    stage = {"batch_size": 4, "num_steps": 5, "img_size": 8, "gen_lr": KEYS["gen_lr"],
             "disc_lr": KEYS["disc_lr"]}  # fmt: skip
    source = {**curriculums.CelebA, **KEYS, "discriminator": critic, "model": model, 0: stage}
    source = {key: value for key, value in source.items() if key not in ("gen_lr", "disc_lr")}
    run = published_run.open_run(tmp_path)
    wanted = run.adapt(curriculum.build("Mine", source))
    game = AdversarialGame(
        wanted.build_generator(), wanted.build_discriminator(), wanted.optimizer_options(),
        Precision(), seed=0)  # fmt: skip
    run_state.load_state(run_state.published_content(run, wanted), game)
    torch.set_default_dtype(torch.float64)
    doubled(made, game)
    drawn, draw_scenes = [], game.draw_scenes

    def draw(*args, **options):
        drawn.append(draw_scenes(*args, **options))
        return drawn[-1]

    game.draw_scenes = draw
    for step in range(42, 45):
        real = torch.rand(4, 3, 8, 8) * 2 - 1
        terms = game.step(real.clone(), wanted.at(step))
        render = {"size": 8, "steps": 5, "fov": 12, "near": 0.88, "far": 1.12, "clamp": "relu",
                  "hierarchical": True, "last_back": False, "white_back": False}  # fmt: skip
        at = {**KEYS, "step": step, "alpha": step / 10_000, "render": render}
        # The scenes are drawn before; jitter and noise come from this stream.
        samples = stream(0, 0, step, Purpose.SAMPLES)
        torch.set_rng_state(samples.get_state())
        scenes = [(scene.latents, *scene.poses) for scene in drawn[-2:]]
        losses = train(made, real, scenes, at)
        for loss, letter in zip(losses, "dg", strict=True):
            own = sum(term for name, term in terms.items() if name.startswith(letter))
            torch.testing.assert_close(own, loss, **EXACTLY)
    for name in ("generator", "discriminator"):
        network, state = getattr(game, name), getattr(game, f"{name}_optimizer").state
        moments = made[f"optimizer_{name[0].upper()}"]["state"]
        for index, pair in enumerate(
            zip(network.parameters(), made[name].parameters(), strict=True)
        ):
            torch.testing.assert_close(*pair, **EXACTLY)
            assert (index in moments) == bool(state.get(pair[0]))
            for key in ("exp_avg", "exp_avg_sq") if index in moments else ():
                torch.testing.assert_close(state[pair[0]][key], moments[index][key], **EXACTLY)
    for own, average in zip(game.averages, made["averages"], strict=True):
        for pair in zip(own.shadow, average["shadow_params"], strict=True):
            torch.testing.assert_close(*pair, **EXACTLY)


@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_averages_over_12_000_updates(decay):
    torch.set_default_dtype(torch.float64)
    parameter, wanted = torch.nn.Parameter(torch.zeros(2)), torch.zeros(2)
    own = ExponentialMovingAverage([parameter], decay)
    for count, value in enumerate(torch.randn(12_000, 2) + 1, start=1):
        parameter.data = value
        own.update([parameter])
        share = min(decay, (1 + count) / (10 + count))
        wanted = share * wanted + (1 - share) * value
        assert (own.shadow[0] - wanted).abs().max() < 1e-8


# Images per process, samples, pixels, splits, both rates.
STAGES = {
    "CelebA": {0: (56, 12, 64, 2, 6e-5, 2e-4)},
    "Cats": {0: (28, 24, 64, 4, 6e-5, 2e-4)},
    "CARLA": {
        0: (30, 48, 32, 1, 4e-5, 4e-4),
        10_000: (14, 48, 64, 2, 2e-5, 2e-4),
        55_000: (10, 48, 128, 5, 1e-5, 1e-4),
    },
}


@pytest.mark.parametrize("name", STAGES)
def test_schedules_over_200_000_steps(name):
    own = curriculums.load(name)
    edges = [start + off for start in STAGES[name] for off in (-1, 0, 1, 9999, 10_000, 10_001)]
    for step in sorted({*range(0, 200_000, 499), *(e for e in edges if e >= 0), 199_999}):
        start = max(start for start in STAGES[name] if start <= step)
        stage, (interval, least) = own.at(step), (1000, 1) if name == "CARLA" else (2000, 0.6)
        found = (stage.batch_size, stage.render.num_steps, stage.render.image_size,
                 stage.batch_split, stage.generator_lr, stage.discriminator_lr)  # fmt: skip
        assert found == STAGES[name][start]
        assert stage.alpha == pytest.approx(min(1, (step - start) / 10_000), abs=1e-8)
        assert stage.topk_share == pytest.approx(max(0.99 ** (step / interval), least), abs=1e-8)
        assert stage.render.density_noise == pytest.approx(max(0, 1 - step / 5000), abs=1e-8)
