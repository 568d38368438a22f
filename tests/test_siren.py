"""The fields: formula, initialisation, state-dict contract, and the folded field."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from siren.film import Film, FiLMLayer, concatenated
from siren.fused import cpu, eager
from siren.siren import FIELDS, EmbeddingPiGAN128

GRID = (4, 5, 0.1)  # a small grid of embeddings: features, side, deviation


def small(name="TALLSIREN", **changes):
    torch.manual_seed(0)
    sizes = {"z_dim": 8, "hidden_dim": 16, "num_layers": 3, "mapping_hidden_dim": 8}
    return FIELDS[name](**{**sizes, **changes}).double()


def inputs(num_points, num_directions, batch=2):
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(batch, num_points, 3, generator=rng, dtype=torch.float64) * 0.2 - 0.1
    directions = torch.randn(batch, num_directions, 3, generator=rng, dtype=torch.float64)
    z = torch.randn(batch, 8, generator=rng, dtype=torch.float64)
    return points, directions, z


def test_film_layer_is_the_sine_of_its_modulated_affine_map():
    torch.manual_seed(0)
    layer = FiLMLayer(3, 5).double()
    x, frequencies, phases = torch.randn(2, 7, 3).double(), torch.randn(2, 5), torch.randn(2, 5)
    found = layer(x, frequencies.double(), phases.double())
    weight, bias = layer.layer.weight, layer.layer.bias
    one = torch.sin(frequencies[1].double() * (weight @ x[1, 4] + bias) + phases[1].double())
    torch.testing.assert_close(found[1, 4], one)


def test_lerp_keeps_starts_ends_and_means():
    start, end = Film(torch.zeros(1, 4), torch.ones(1, 4)), Film(torch.ones(2, 4), torch.ones(2, 4))
    assert torch.equal(start.lerp(end, 0.0).frequencies, torch.zeros(2, 4))
    assert torch.equal(start.lerp(end, 1.0).frequencies, torch.ones(2, 4))
    assert torch.equal(start.lerp(end, 0.25).frequencies, torch.full((2, 4), 0.25))


WAYS = {
    "fast": lambda field, inputs, film: field(*inputs, film),
    "reference": lambda field, inputs, film: field.reference(
        field.encode(inputs[0]), inputs[1], film
    ),
    "density": lambda field, inputs, film: field.density(inputs[0], film),
    "reference density": lambda field, inputs, film: field.reference_density(
        field.encode(inputs[0]), film
    ),
    "first": lambda field, inputs, film: field.joined(film).first,
    "direction": lambda field, inputs, film: field.joined(film).direction,
    "inner": lambda field, inputs, film: field.joined(film).inner,
}


@pytest.mark.parametrize("way", WAYS)
def test_changes_of_weights_are_those_of_each_object(way):
    field, (points, directions, z) = small(), inputs(6, 2)
    plain = field.mapping_network(z)
    sizes = [layer.weight.numel() for layer in field.film_layers()]
    film = replace(plain, weight_changes=0.1 * torch.randn(2, sum(sizes)).double())
    with torch.no_grad():
        together = WAYS[way](field, (points, directions), film)
        for index in range(2):
            part, own = slice(index, index + 1), copy.deepcopy(field)
            layers = [*(each.layer for each in own.network), own.color_layer_sine.layer]
            for layer, change in zip(layers, film.weight_changes[index].split(sizes), strict=True):
                layer.weight += change.view_as(layer.weight)
            alone = WAYS[way](own, (points[part], directions[part]), plain[part])
            torch.testing.assert_close(together[part], alone)


def test_changes_of_weights_are_interpolated_and_joined():
    changed = Film(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[2.0, 4.0]]))
    plain = Film(torch.zeros(1, 2), torch.zeros(1, 2))
    assert plain.lerp(changed, 0.25).weight_changes.tolist() == [[0.5, 1.0]]
    assert changed.lerp(plain, 0.25).weight_changes.tolist() == [[1.5, 3.0]]
    assert plain.lerp(plain, 0.5).weight_changes is None
    both = concatenated([plain, changed])
    assert both.weight_changes.tolist() == [[0.0, 0.0], [2.0, 4.0]]
    assert both[1:].weight_changes.tolist() == [[2.0, 4.0]]
    assert concatenated([plain, plain]).weight_changes is None


def test_frequencies_are_scaled_and_split_layer_by_layer():
    film = Film(torch.arange(6.0)[None], torch.arange(6.0)[None] + 10)
    (f0, p0), (f1, p1) = film.layers(3)
    assert f0.tolist() == [[30, 45, 60]]
    assert f1.tolist() == [[75, 90, 105]]
    assert (p0.tolist(), p1.tolist()) == ([[10, 11, 12]], [[13, 14, 15]])


@pytest.mark.parametrize("name", FIELDS)
def test_initialisation_bounds(name):
    torch.manual_seed(0)
    field = FIELDS[name]()
    first = field.network[0].layer.weight
    assert 0.9 / 3 < first.abs().max() <= 1 / 3
    rest = [layer.layer for layer in field.network[1:]]
    for linear in (*rest, field.final_layer, field.color_layer_sine.layer):
        bound = math.sqrt(6 / linear.in_features) / 25
        assert 0.9 * bound < linear.weight.abs().max() <= bound


def expected_names(name, num_layers=8):
    names = ["spatial_embeddings"] if name.startswith("Embedding") else []
    layers = [f"network.{i}.layer" for i in range(num_layers)]
    layers += ["final_layer", "color_layer_sine.layer", "color_layer_linear.0"]
    layers += [f"mapping_network.network.{i}" for i in (0, 2, 4, 6)]
    return names + [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    "name", ["TALLSIREN", "SPATIALSIRENBASELINE", "EmbeddingPiGAN128", "EmbeddingPiGAN256"]
)
def test_state_dict_names_order_and_shapes(name):
    field = FIELDS[name]()
    assert list(field.state_dict()) == expected_names(name)
    assert [key for key, _ in field.named_parameters()] == expected_names(name)
    width = 128 if name == "EmbeddingPiGAN128" else 256
    inputs_of_first = 35 if name.startswith("Embedding") else 3
    shapes = {key: tuple(value.shape) for key, value in field.state_dict().items()}
    assert shapes["network.0.layer.weight"] == (width, inputs_of_first)
    assert shapes["color_layer_sine.layer.weight"] == (width, width + 3)
    assert shapes["mapping_network.network.0.weight"] == (256, 256)
    assert shapes["mapping_network.network.6.weight"] == (18 * width, 256)
    side = {"EmbeddingPiGAN128": 96, "EmbeddingPiGAN256": 64}.get(name)
    assert shapes.get("spatial_embeddings") == ((1, 32, side, side, side) if side else None)


def test_points_are_scaled_by_the_box():
    points = torch.full((1, 1, 3), 0.06, dtype=torch.float64)
    assert small("SPATIALSIRENBASELINE").encode(points).max().item() == pytest.approx(0.5)
    assert small("SPATIALSIRENBASELINE", box_side=0.5).encode(points).max() == pytest.approx(0.24)
    assert small("TALLSIREN").encode(points).max().item() == pytest.approx(0.06)


def test_embeddings_are_trilinear_with_x_along_the_last_axis():
    field = EmbeddingPiGAN128(z_dim=4, hidden_dim=8, num_layers=1)
    with torch.no_grad():
        field.spatial_embeddings.zero_()
        field.spatial_embeddings[0, 0] = torch.linspace(-1, 1, 96)  # grows with x
        field.spatial_embeddings[0, 1] = torch.linspace(-1, 1, 96)[:, None]  # with y
        field.spatial_embeddings[0, 2] = torch.linspace(-1, 1, 96)[:, None, None]  # with z
    points = torch.tensor([[[0.03, -0.06, 0.09], [0.5, 0.0, 0.0]]])
    encoded = field.encode(points)
    torch.testing.assert_close(encoded[0, 0, :3], points[0, 0] * 2 / 0.24)
    assert (encoded[0, 1, :32] == 0).all()  # outside the grid
    torch.testing.assert_close(encoded[..., 32:], points * 2 / 0.24)


def by_eager(field, points, directions, film, dtype=None):
    """The path on CUDA where no Triton kernel serves; dtype: of the operands."""
    return eager.evaluate(field.joined(film), field.encode(points), directions, dtype)


def results_of(evaluate, field, points, directions, z, upstream):
    """Output and gradients by evaluate, and by the reference."""
    wanted = [points.requires_grad_(), directions.requires_grad_(), *field.parameters()]
    for is_fast in (True, False):
        film = field.mapping_network(z)
        if is_fast:
            output = evaluate(field, points, directions, film)
        else:
            output = field.reference(field.encode(points), directions, film)
        yield output, *torch.autograd.grad((output * upstream).sum(), wanted)


PATHS = {"cpu": lambda field, *asked: field(*asked), "eager": by_eager}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    ("num_points", "num_directions", "num_layers"),
    [(12, 1, 3), (12, 3, 1), (12, 12, 3), (1, 1, 1)],
)
def test_the_fast_path_equals_the_reference_gradients_included(
    name, num_points, num_directions, num_layers, path, monkeypatch
):
    monkeypatch.setattr(cpu, "CHUNK_NUMBERS", 16 * 5)  # five points: chunks with a remainder
    monkeypatch.setattr(eager, "CHUNK_NUMBERS", 2 * 16 * 5)
    monkeypatch.setattr(FIELDS[name], "embedding_shape", FIELDS[name].embedding_shape and GRID)
    field = small(name, density_scale=3.0, num_layers=num_layers)
    rng = torch.Generator().manual_seed(2)
    upstream = torch.randn(2, num_points, 4, generator=rng, dtype=torch.float64)
    upstream[:, ::3] = 0  # points that need no gradient
    asked = inputs(num_points, num_directions)
    for fast, reference in zip(*results_of(PATHS[path], field, *asked, upstream), strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-9, atol=1e-11)


def test_the_fast_path_takes_no_points_and_strided_points():
    field = small()
    points, directions, z = inputs(12, 1)
    film = field.mapping_network(z)
    assert field(points[:, :0], directions, film).shape == (2, 0, 4)
    strided = torch.empty(2, 3, 12, dtype=torch.float64).copy_(points.transpose(1, 2))
    torch.testing.assert_close(
        field(strided.transpose(1, 2), directions, film), field(points, directions, film)
    )


@pytest.mark.parametrize("path", PATHS)
def test_the_fast_path_is_differentiable_once_and_says_so(path):
    field = small()
    points, directions, z = inputs(4, 1)
    points.requires_grad_()
    output = PATHS[path](field, points, directions, field.mapping_network(z))
    with pytest.raises(RuntimeError, match="differentiable once; use FilmSiren.reference"):
        torch.autograd.grad(output.sum(), points, create_graph=True)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("num_points", [0, 1, 12])
def test_density_alone_and_its_gradient_are_those_of_the_whole_field(name, num_points, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_NUMBERS", 16 * 5)  # five points: chunks with a remainder
    monkeypatch.setattr(eager, "CHUNK_NUMBERS", 2 * 16 * 5)
    field = small(name, density_scale=3.0)
    points, directions, z = inputs(num_points, 1)
    film = field.mapping_network(z)
    whole = field.reference(field.encode(points), directions, film)[..., 3]
    with torch.no_grad():
        fast = field.density(points, film)
        on_cuda = eager.density(field.joined(film), field.encode(points))
    torch.testing.assert_close(fast, whole.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(on_cuda, whole.detach(), rtol=1e-9, atol=1e-11)
    alone = field.density(points.requires_grad_(), film)
    whole = field.reference(field.encode(points), directions, film)[..., 3]
    torch.testing.assert_close(alone, whole, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(density.sum(), points)[0] for density in (alone, whole))
    torch.testing.assert_close(*gradients)
