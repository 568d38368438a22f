"""Shared parts of the render commands: objects, render options, sizes of chunks."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY
from one_view import look

from config import curriculum
from generators.fields import CPU_CHUNK
from rendering import viewing
from siren.fused import cpu as fused_cpu
from system import flags


def parse(*texts):
    parser = flags.ArgumentParser("x")
    viewing.add_generator(parser)
    viewing.add_objects(parser, psi=0.7)
    viewing.add_rendering(parser)
    return parser.parse_args([str(text) for text in texts])


@pytest.fixture
def opened(tiny_run):
    args = parse(tiny_run / "generator.pth", "--seeds", "0-2")
    return viewing.open_generator(args), args


def test_psi_beyond_one_exaggerates_with_a_note(tiny_run, capsys):
    args = parse(tiny_run / "generator.pth", "--seeds", "3", "--psi", "1.5")
    saved = viewing.open_generator(args)
    (shown,) = viewing.objects_to_show(saved, args)
    assert capsys.readouterr().err.startswith("note: --psi 1.5 is beyond 1")
    mean, whole = viewing.mean_film(saved), viewing.objects_of_seeds(saved, [3], psi=1.0)[0].film
    wanted = mean.frequencies + 1.5 * (whole.frequencies - mean.frequencies)
    torch.testing.assert_close(shown.film.frequencies, wanted)
    viewing.objects_to_show(saved, parse(tiny_run / "generator.pth", "--seeds", "3", "--psi", "1"))
    assert capsys.readouterr().err == ""


def test_rays_are_those_of_the_stage_that_was_trained_last(opened):
    saved, args = opened
    later = {**TINY[0], "num_steps": 9, "ray_start": 0.5}
    grown = curriculum.build("Grown", {**TINY, 3: later})
    for step, near in ((2, 0.88), (3, 0.88), (4, 0.5)):
        options = viewing.render_options(replace(saved, curriculum=grown, step=step), args)
        assert (options.near, options.num_steps) == (near, 8)  # steps are the first stage's


def test_options_are_the_curriculums_with_more_samples_and_chunks_as_asked_for(opened):
    saved, args = opened
    options = viewing.render_options(saved, args)
    assert (options.image_size, options.num_steps, options.fov_degrees) == (256, 8, 12)
    assert (options.background, options.lock_view_dependence) == ("white", False)
    assert saved.generator.points_per_chunk == CPU_CHUNK
    args.max_batch_size = 100
    assert viewing.open_generator(args).generator.points_per_chunk == 100


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_fast_rounds_what_the_field_multiplies_and_the_picture_stays(
    tiny_run, precision, monkeypatch
):
    monkeypatch.setattr(fused_cpu, "WIDE", 1)  # else a tiny field is not rounded
    monkeypatch.setitem(viewing.FAST_DTYPES, "cpu", torch.bfloat16)  # on all processors
    args = parse(tiny_run / "generator.pth", "--image_size", 8)
    exact = viewing.open_generator(args)
    args.precision = precision
    saved = viewing.open_generator(args)
    (thing,) = viewing.objects_of_seeds(exact, [0], psi=1.0)
    options = viewing.render_options(exact, args)
    one, other = (
        look(each, thing.film, 1.3, 1.6, options, points_per_chunk=500).images
        for each in (exact, saved)
    )
    error = (one - other).abs().max()
    assert error == 0 if precision == "exact" else 0 < error < 0.02
