"""A new run that begins with the networks of another one."""

import published_files
import pytest
import torch
from faults import assert_same_state, state_of
from test_adversarial import TINY, parameters_of, tiny_game
from test_train import run

import curriculums
from system.errors import UsageError
from training import state
from training.transfer import load_networks, read_networks


def saved_run(folder, *overrides):
    """Write a run whose averages differ from its generator; return its game."""
    game, curriculum = tiny_game(*overrides)
    for average in game.averages:
        for value in average.shadow:
            value.add_(1)
    state.save_state(folder, game, curriculum, state.Progress(7))
    return game


def same(tensors, others):
    return [torch.equal(a, b) for a, b in zip(tensors, others, strict=True)]


def other_game(*overrides):
    """Return a game with other parameters than those of tiny_game, and its curriculum."""
    game, curriculum = tiny_game(*overrides)
    with torch.no_grad():
        for parameter in (*game.generator.parameters(), *game.discriminator.parameters()):
            parameter.fill_(0.25)
    return game, curriculum


def test_a_run_gives_its_average_and_its_discriminator(tmp_path):
    source = saved_run(tmp_path)
    game, curriculum = other_game("fov=12", "dataset=Images")
    networks, line = read_networks(tmp_path, curriculum)
    load_networks(networks, game)
    assert all(same(parameters_of(game.generator), source.averages[0].shadow))
    assert all(same(parameters_of(game.discriminator), parameters_of(source.discriminator)))
    for average in game.averages:
        assert all(same(average.shadow, source.averages[0].shadow))
        assert average.num_updates == 0
    assert line.startswith(f"transfer from {tmp_path}: generator all ")
    assert "; discriminator all " in line


@torch.no_grad()
def test_objects_of_another_size_stay_as_opaque(tmp_path):
    free = "surface_width=None", "eikonal_lambda=0", "3400.smoothness_lambda=0"
    source, trained = tiny_game("box_side=0.5", "density_scale=3", *free)
    state.save_state(tmp_path, source, trained, state.Progress(7))
    game, curriculum = other_game("box_side=0.24", "density_scale=7", *free)
    load_networks(read_networks(tmp_path, curriculum)[0], game)
    before, after = source.generator, game.generator
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) / 4
    latent = torch.ones(1, before.z_dim)
    optical_depths = [
        side * generator.density(generator.mapping(latent))(side * points)
        for generator, side in ((before, 0.5), (after, 0.24))
    ]
    torch.testing.assert_close(*optical_depths, rtol=1e-4, atol=1e-5)
    assert optical_depths[0].std() > 1e-3


@torch.no_grad()
def test_surfaces_keep_their_shape_in_a_scene_of_another_size(tmp_path):
    changes = "density_scale=0.1", "surface_width=0.01"
    source, trained = tiny_game("box_side=0.5", *changes)
    state.save_state(tmp_path, source, trained, state.Progress(7))
    game, curriculum = other_game("box_side=0.25", *changes)
    load_networks(read_networks(tmp_path, curriculum)[0], game)
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) / 4
    distances = [
        side * generator.siren.distances(points / side, generator.mapping(torch.ones(1, 4)))
        for generator, side in ((source.generator, 1), (game.generator, 2))
    ]
    torch.testing.assert_close(*distances)
    free = "surface_width=None", "eikonal_lambda=0", "3400.smoothness_lambda=0"
    game, curriculum = other_game(*free)
    networks, line = read_networks(tmp_path, curriculum)
    assert "siren.final_layer.weight" not in networks["generator"]
    assert "siren.final_layer.weight" in line


def test_a_file_gives_the_generator_alone(tmp_path):
    saved_run(tmp_path)
    (tmp_path / "ema.pth").unlink()
    game, curriculum = other_game()
    networks, line = read_networks(tmp_path / "generator.pth", curriculum)
    load_networks(networks, game)
    assert not any((p == 0.25).all() for p in game.generator.parameters())
    assert all((p == 0.25).all() for p in game.discriminator.parameters())
    assert line.endswith("discriminator all fresh")


def test_a_published_run_gives_its_networks(tmp_path):
    published_files.write_run(tmp_path)
    widths = ["hidden_dim=8", "mapping_hidden_dim=8", f"latent_dim={published_files.Z_DIM}"]
    curriculum = curriculums.load("Demo", overrides=[*TINY, *widths])
    networks, line = read_networks(tmp_path, curriculum)
    assert "siren.network.1.layer.weight" in networks["generator"]
    assert networks["discriminator"]
    assert line.startswith(f"transfer from {tmp_path}: generator ")


def test_what_does_not_fit_is_named_and_stays_fresh(tmp_path):
    saved_run(tmp_path)
    game, curriculum = other_game("latent_dim=5", "discriminator_width=4")
    networks, line = read_networks(tmp_path, curriculum)
    load_networks(networks, game)
    mapping = game.generator.siren.mapping_network.network[0].weight
    assert (mapping == 0.25).all()
    assert "fresh: siren.mapping_network.network.0.weight; discriminator " in line
    assert line.count(";") == 1
    assert " more" in line
    fresh = [name for name, p in game.discriminator.named_parameters() if (p == 0.25).all()]
    assert set(fresh) == set(game.discriminator.state_dict()) - set(networks["discriminator"])
    assert fresh


def test_what_cannot_be_used_is_one_clear_error(tmp_path):
    saved_run(tmp_path / "run")
    curriculum = curriculums.load("Demo", overrides=TINY)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="there is no generator.pth in it|no such folder"):
            read_networks(folder, curriculum)
    wide = curriculums.load("Demo", overrides=[*TINY, "hidden_dim=9"])
    with pytest.raises(UsageError, match=r"only \d+ of \d+ tensors .* hidden_dim .* must be"):
        read_networks(tmp_path / "run", wide)


@pytest.mark.parametrize("words", [(), ("--resume",), ("--transfer", "{out}")])
def test_a_generator_without_a_run_is_not_replaced(tiny, tmp_path, words):
    out = tmp_path / "out"
    run(tiny, out, "--max_steps", "1")
    (out / "training_state.pth").unlink()
    before = (out / "generator.pth").read_bytes()
    with pytest.raises(UsageError, match="holds a generator.pth, which training would replace"):
        run(tiny, out, "--max_steps", "1", *(word.format(out=out) for word in words))
    assert (out / "generator.pth").read_bytes() == before


def test_the_same_command_resumes_and_other_wishes_contradict(tiny, tmp_path, capsys):
    source = str(tmp_path / "source")
    run(tiny, source, "--max_steps", "3", "--seed", "8")
    words = ["--transfer", source, "--resume", "--max_steps"]
    run(tiny, tmp_path / "whole", *words, "4")
    printed = capsys.readouterr().err
    assert f"transfer from {source}: generator all" in printed
    assert state_of(tmp_path / "whole")["step"] == 4
    run(tiny, tmp_path / "parts", *words, "2")
    capsys.readouterr()
    run(tiny, tmp_path / "parts", *words, "4")
    printed = capsys.readouterr().err
    assert "note: --transfer is not used again" in printed
    assert "transfer from" not in printed
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UsageError, match="give either"):
        run(tiny, tmp_path / "out", "--transfer", source, "--load_dir", source)
    assert not (tmp_path / "out").exists()
