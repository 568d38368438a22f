"""Image metrics: the libraries' own numbers, and the commands around them on a tiny generator.

Where a network is needed it is FID's Inception with seeded random weights, or a far smaller one:
what comes of it is a test's number and no FID.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import NUM_FEATURES, TINY, WIDTH, needs_libraries, save_network
from PIL import Image

import eval_metrics
import fid_evaluation
from checkpoint_io import checkpoints
from config import curriculum
from distributed import processes
from metrics import features as quality
from metrics import inception, real_images, report, samples
from metrics.frechet import fitted_gaussian, frechet_distance
from metrics.inception import Weights
from system.errors import UsageError

pytestmark = pytest.mark.usefixtures("few_features")


def evaluate(tiny_run, reals, weights, out, *more):
    code = eval_metrics.main(
        [str(tiny_run / "generator.pth"), "--device", "cpu", "--real_image_dir", str(reals)]
        + ["--inception_weights", str(weights), "--any_inception_weights", "--num_images", "40"]
        + ["--output_dir", str(out), "--cache_dir", str(out.parent / "cache"), *more]
    )
    assert code == 0
    return json.loads((out / "metrics.json").read_text())


def test_figures_are_the_library_s_own(tmp_path):
    needs_libraries()
    inception.fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    rng = torch.Generator().manual_seed(0)
    generated = torch.randn(60, WIDTH, generator=rng)
    real = torch.randn(50, NUM_FEATURES, generator=rng) + 0.2
    figures = quality.image_metrics(generated, real)
    parts = generated[:, :NUM_FEATURES], real
    statistics = [fid_features_to_statistics(part.double()) for part in parts]
    library = fid_statistics_to_metric(*statistics, verbose=False)
    assert figures["fid"] == pytest.approx(library["frechet_inception_distance"], rel=1e-9)
    ours = frechet_distance(*map(fitted_gaussian, parts))
    assert ours == pytest.approx(figures["fid"], rel=1e-4)  # another way to the same number
    logits = generated[:, NUM_FEATURES:].contiguous()
    assert figures["is_mean"] == isc_features_to_metric(logits)["inception_score_mean"]
    kid = unbiased_kid(*parts)
    assert figures["kid_mean"] == pytest.approx(kid, rel=0.2)
    assert 0 <= figures["precision"] <= 1
    assert 0 <= figures["recall"] <= 1


def unbiased_kid(one, other):
    """The estimator with all images at once (Binkowski et al. 2018, equation 4)."""
    kernel = lambda a, b: (a.double() @ b.double().T / a.shape[1] + 1) ** 3  # noqa: E731
    same = sum(
        (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1)) for x in (one, other)
    )
    return float(same - 2 * kernel(one, other).mean())


def test_the_same_images_are_perfect():
    needs_libraries()
    features = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    figures = quality.image_metrics(features, features[:, :NUM_FEATURES])
    assert figures["fid"] == pytest.approx(0, abs=1e-3)
    assert (figures["precision"], figures["recall"]) == (1, 1)


@pytest.mark.parametrize(
    ("num_generated", "num_real", "there"),
    [
        (40, 50, {"fid", "kid_mean", "kid_std", "is_mean", "is_std", "precision", "recall"}),
        (10, 4, {"fid", "kid_mean", "kid_std", "is_mean", "is_std", "precision", "recall"}),
        (9, 4, {"fid", "kid_mean", "kid_std", "precision", "recall"}),
        (9, 3, {"fid", "kid_mean", "kid_std"}),
        (3, 9, {"fid", "kid_mean", "kid_std"}),
        (2, 2, {"fid", "kid_mean", "kid_std"}),
        (40, 1, {"is_mean", "is_std"}),
        (1, 40, set()),
    ],
)
def test_metrics_without_enough_images_are_left_out(num_generated, num_real, there):
    needs_libraries()
    rng = torch.Generator().manual_seed(0)
    generated = torch.randn(num_generated, WIDTH, generator=rng)
    figures = quality.image_metrics(generated, torch.randn(num_real, NUM_FEATURES, generator=rng))
    assert figures.keys() == there
    assert np.isfinite(list(figures.values())).all()


def test_a_few_images_are_measured_as_far_as_they_go(
    small_network, tiny_run, reals, tmp_path, capsys
):
    weights, _ = small_network
    found = evaluate(tiny_run, reals, weights, tmp_path / "temp", "--num_images", "6")
    assert {"fid", "kid_mean", "precision"} <= found["images"].keys()
    assert "is_mean" not in found["images"]
    assert "IS left out: needs 10 generated images" in capsys.readouterr().out
    with pytest.raises(UsageError, match="FID needs 2 generated images; KID"):
        evaluate(tiny_run, reals, weights, tmp_path / "temp", "--num_images", "1")


def test_evaluation_says_what_decides_its_figures_and_reads_the_real_images_once(
    small_network, tiny_run, reals, tmp_path, capsys, monkeypatch
):
    weights, seen = small_network
    found = evaluate(tiny_run, reals, weights, tmp_path / "temp")
    images, settings = found["images"], found["images"]["settings"]
    assert {"fid", "kid_mean", "kid_std", "is_mean", "is_std", "precision", "recall"} <= set(images)
    assert settings["num_generated"] == 40
    assert settings["num_real"] == 10
    assert settings["image_size"] == 8
    assert settings["inception"]["is_official"] is False
    assert settings["real_images"]["made"]["protocol"] == "clean"
    assert settings["render"]["num_steps"] == 4
    assert found["generator"]["weights"] == "ema"
    assert found["psi"] == 1
    printed = capsys.readouterr().out
    assert f"{images['fid']:.2f}" in printed
    assert "cannot be compared" in printed
    with Image.open(tmp_path / "temp" / "00039.png") as image:
        assert image.size == (8, 8)
    assert sum(seen) == 50
    with monkeypatch.context() as patched:
        patched.setattr(real_images, "decode_all", lambda *_: pytest.fail("read again"))
        second = evaluate(tiny_run, reals, weights, tmp_path / "temp")
    assert sum(seen) == 90  # only the generated ones
    assert second["images"] == images
    (reals / "00003.png").write_bytes((reals / "00004.png").read_bytes())
    third = evaluate(tiny_run, reals, weights, tmp_path / "temp")
    assert sum(seen) == 140
    assert third["images"]["fid"] != images["fid"]


def test_ranks_take_whole_blocks_in_turn_and_together_all_images():
    places = [processes.Place(device=torch.device("cpu"), rank=r, world_size=3) for r in range(3)]
    shares = [list(quality.blocks_of(200, place)) for place in places]
    alone = list(quality.blocks_of(200, processes.Place(device=torch.device("cpu"))))
    assert sorted((b for share in shares for b in share), key=lambda b: b.start) == alone
    assert [number for block in alone for number in block] == list(range(200))


def options_of(saved, size):
    return samples.SampleOptions(
        seed=3,
        poses=saved.curriculum.poses(),
        latent_kind="gaussian",
        render=saved.curriculum.preview_render(0, size),
    )


def test_an_image_depends_on_the_seed_and_its_number_alone(tiny_run):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    options = options_of(saved, 8)

    def image(index, **changes):
        changed = dataclasses.replace(options, **changes)
        return samples.sample_image(saved.generator, index, changed)

    assert torch.equal(image(5), image(5))
    assert not torch.equal(image(5), image(6))
    assert not torch.equal(image(5), image(5, seed=4))
    jittered = image(5, is_jittered=True)
    assert torch.equal(jittered, image(5, is_jittered=True))
    assert not torch.equal(jittered, image(5))


def test_nothing_in_the_output_folder_is_deleted(small_network, tiny_run, reals, tmp_path):
    weights, _ = small_network
    out = tmp_path / "temp"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    evaluate(tiny_run, reals, weights, out, "--protocol", "published")
    assert (out / "diary.txt").read_text() == "mine"
    with Image.open(out / "00000.jpg") as image:
        assert image.format == "JPEG"


def test_a_wrong_network_is_refused_by_its_hash(tiny_run, reals, tmp_path):
    needs_libraries()
    path = tmp_path / "some.pth"
    torch.save({"conv": torch.zeros(3)}, path)
    command = [str(tiny_run / "generator.pth"), "--real_image_dir", str(reals), "--device", "cpu"]
    command += ["--inception_weights", str(path), "--output_dir", str(tmp_path / "temp")]
    with pytest.raises(UsageError, match="not the published Inception network"):
        eval_metrics.main(command)
    with pytest.raises(UsageError, match="does not hold the weights"):
        eval_metrics.main([*command, "--any_inception_weights"])


def test_an_official_file_is_known_by_its_hash(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    digest = inception.hashlib.sha256(b"x").hexdigest()
    monkeypatch.setattr(inception, "HASH_PREFIX", digest[:8])
    assert inception.find_weights(path).is_official
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / inception.FILE_NAMES[1]  # either library's name will do
    cached.write_bytes(b"x")
    assert inception.find_weights(None).path == cached


def test_without_internet_it_says_where_the_network_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_, **__):
        raise inception.urllib.error.URLError("no route")

    monkeypatch.setattr(inception.urllib.request, "urlopen", unreachable)
    with pytest.raises(inception.Unavailable, match="--inception_weights"):
        inception.find_weights(None)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    needs_libraries()
    import pickle

    class Hostile:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UsageError, match="nothing in it was run"):
        inception.fidelity_network(Weights(path=path, sha256="0"), torch.device("cpu"))


def test_both_libraries_read_one_file_and_see_the_same(tmp_path, monkeypatch):
    """Inception itself, with seeded random weights: at 299 px neither library resizes."""
    convolution, in_tf32 = torch.nn.functional.conv2d, set()

    def noted(*arguments):
        in_tf32.add(torch.backends.cudnn.allow_tf32)
        return convolution(*arguments)

    monkeypatch.setattr(torch.nn.functional, "conv2d", noted)
    needs_libraries()
    inception.require_torchvision()
    from pytorch_fid import inception as library

    torch.manual_seed(0)
    download = library.load_state_dict_from_url
    network = library._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    weights = Weights(path=path, sha256="0")
    images = torch.randint(0, 256, (2, 3, 299, 299), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    state = torch.get_rng_state()
    one = inception.pytorch_fid_network(weights, torch.device("cpu"))(images)
    assert torch.equal(state, torch.get_rng_state())  # training's random numbers must not change
    assert library.load_state_dict_from_url is download
    other = inception.fidelity_network(weights, torch.device("cpu"))(images)
    path.unlink()
    assert in_tf32 == {False}  # which PyTorch would allow
    assert one.shape == (2, inception.NUM_FEATURES)
    assert other.shape == (2, inception.NUM_FEATURES + inception.NUM_LOGITS)
    # The one maps 255 to 1, the other to 127/128, as the original does.
    scale = one.abs().max()
    torch.testing.assert_close(one / scale, other[:, :2048] / scale, atol=0.05, rtol=0)


# Real images


def test_real_images_are_written_once_and_resumed(tmp_path, capsys):
    folder = tmp_path / "reals"
    command = ["--dataset", "ToyCars", "--img_size", "16", "--num_imgs", "70"]
    command += ["--output_dir", str(folder)]
    fid_evaluation.main(command)
    files = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert sorted(files) == [f"{number:05d}.png" for number in range(70)]
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    for number in (5, 68, 69):
        (folder / f"{number:05d}.png").unlink()
    fid_evaluation.main(command)
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == files
    kept = folder / "00004.png"
    assert kept.stat().st_mtime_ns == times[kept.name]
    assert "70 real images" in capsys.readouterr().out


def test_folders_of_other_images_are_refused(tmp_path):
    folder = tmp_path / "reals"
    command = ["--dataset", "ToyCars", "--img_size", "8", "--output_dir", str(folder)]
    fid_evaluation.main([*command, "--num_imgs", "3"])
    with pytest.raises(UsageError, match="another way"):
        fid_evaluation.main([*command, "--num_imgs", "4"])
    with pytest.raises(UsageError, match="another way"):
        fid_evaluation.main([*command, "--num_imgs", "3", "--protocol", "published"])
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UsageError, match="not ours"):
        fid_evaluation.main(["--dataset", "ToyCars", "--output_dir", str(other)])


def photos(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.full((10, 10, 3), 20 * number, np.uint8)
        pixels[:, :5] = 255
        Image.fromarray(pixels).save(folder / f"photo{number}.png")
    return folder


def test_published_protocol_is_jpeg_nearest_and_mirrors_some(tmp_path):
    source = photos(tmp_path / "photos", 8)
    out = tmp_path / "out"
    fid_evaluation.main(
        ["--dataset", "Cats", "--dataset_path", str(source), "--img_size", "4", "--num_imgs", "20"]
        + ["--protocol", "published", "--output_dir", str(out)]
    )
    written = sorted(out.glob("*.jpg"))
    assert len(written) == 8  # there are no more
    left = [real_images.decoded(path.read_bytes())[0, :, 0].float().mean() for path in written]
    mirrored = sum(float(value) < 200 for value in left)
    assert 0 < mirrored < 8
    manifest = json.loads((out / real_images.MANIFEST).read_text())
    assert manifest["dataset"]["resize"] == "nearest"
    assert manifest["is_flipped"]


@pytest.mark.parametrize("content", [b"", b"\x89PNG"])
def test_a_failed_try_does_not_block_the_next_one(tmp_path, content):
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    (source / "cut.png").write_bytes(content)
    words = ["--dataset", "Cats", "--dataset_path", str(source), "--output_dir", str(out)]
    with pytest.raises(UsageError, match=r"1 of 1 pictures in .* cannot be read: 'cut.png' \("):
        fid_evaluation.main([*words, "--img_size", "4"])
    assert not out.exists()
    Image.new("RGB", (9, 9)).save(source / "good.png")
    assert fid_evaluation.main([*words, "--img_size", "8"]) == 0
    assert len(list(out.glob("*.png"))) == 1


def test_real_images_of_several_sizes_are_refused(tmp_path):
    folder = photos(tmp_path / "photos", 2)
    Image.new("RGB", (9, 10)).save(folder / "photo2.png")
    real = real_images.open_real_set(folder, tmp_path / "cache")
    assert real.made is None
    assert real.image(1).shape == (3, 10, 10)
    with pytest.raises(UsageError, match="9 x 10"):
        real.image(2)
    with pytest.raises(UsageError, match="is no folder"):
        real_images.open_real_set(tmp_path / "nowhere", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures at .*; give --real_image_dir FOLDER"):
        real_images.open_real_set(tmp_path / "empty", tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"\x89PNG"])
@pytest.mark.parametrize("number", [0, 5])
def test_a_damaged_real_image_is_left_out_and_named(
    small_network, tiny_run, tmp_path, capsys, number, content
):
    folder = photos(tmp_path / "photos", 10)
    (folder / f"photo{number}.png").write_bytes(content)
    written = tmp_path / "reals"
    words = ["--dataset", "Cats", "--dataset_path", str(folder), "--output_dir", str(written)]
    assert fid_evaluation.main([*words, "--img_size", "8"]) == 0
    assert f"1 of 10 pictures in '{folder}' cannot be read: 'photo{number}.png' (" in (
        capsys.readouterr().err
    )
    assert len(list(written.glob("*.png"))) == 9
    (folder / "photo.cr2").write_bytes(b"raw")
    for _ in range(2):  # read, then known
        found = evaluate(tiny_run, folder, small_network[0], tmp_path / "temp")
        assert found["images"]["settings"]["num_real"] == 9
        shown = capsys.readouterr().err
        assert f"'photo{number}.png' (" in shown
        assert f"not used in '{folder}': no pictures that Pillow can read: 1 .cr2" in shown


# 3D quality


def consistency(generator, out, *words):
    command = [str(generator), "--consistency", "--device", "cpu", "--output_dir", str(out)]
    assert eval_metrics.main([*command, *words]) == 0
    return json.loads((out / "metrics.json").read_text())["consistency"]


def test_consistency_needs_no_real_images(tiny_run, tmp_path, capsys):
    out, words = tmp_path / "temp", ["--num_objects", "2", "--consistency_size", "12"]
    found = consistency(tiny_run / "generator.pth", out, *words)
    assert [entry["yaw_offset"] for entry in found["by_yaw"]][:2] == [-0.5, -0.375]
    assert found["pose"] is None  # its discriminator learned no poses
    assert found["mean"]["half_transparent"] > 0
    assert found["mean"]["normal_angle"] > 0
    with Image.open(out / "consistency.png") as plot:
        assert plot.width > 500
    assert "half-transparent rays" in capsys.readouterr().out


def test_supersampled_images_are_the_mean_of_larger_ones(tiny_run):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    options = dataclasses.replace(options_of(saved, 8), supersampling=2)
    image = samples.sample_image(saved.generator, 5, options)
    large = samples.sample_image(saved.generator, 5, options_of(saved, 16))
    corners = [large[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    assert torch.allclose(image, torch.stack(corners).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "words", "wanted"),
    [
        ("antialias", [], 1),
        ("points", [], 2),
        ("points", ["--protocol", "published"], 1),
        ("points", ["--supersampling", "3"], 3),
    ],
)
def test_images_are_antialiased_where_training_was_not(tmp_path, resize, words, wanted):
    tiny = curriculum.build("Tiny", {**TINY, "resize": resize})
    save_network(tmp_path / "generator.pth", tiny.build_generator(), tiny)
    saved = checkpoints.load_generator(tmp_path / "generator.pth")
    args = eval_metrics.build_parser().parse_args(["generator.pth", *words])
    assert eval_metrics.sampling_of(saved, args, 8).supersampling == wanted


def test_a_pose_head_is_asked_about_known_cameras(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "POSE_IMAGES", 12)
    source = {**TINY, "discriminator": "CCSEncoderDiscriminator", "pos_lambda": 15}
    posed = curriculum.build("Posed", source)
    critic = posed.build_discriminator()
    with torch.no_grad():  # a head that always says pitch 1.5, yaw 1.2
        critic.final_layer.weight.zero_()
        critic.final_layer.bias[-2:] = torch.tensor([1.5, 1.2])
    save_network(tmp_path / "05--ema.pth", posed.build_generator(), posed)
    save_network(tmp_path / "05--discriminator.pth", critic, posed, "discriminator")
    words = ["--num_objects", "1", "--consistency_size", "8"]
    found = consistency(tmp_path / "05--ema.pth", tmp_path / "temp", *words)["pose"]
    options = samples.SampleOptions(
        seed=0, poses=posed.evaluation_poses(), latent_kind="gaussian",
        render=posed.evaluation_render(0),
    )  # fmt: skip
    latent_dim = posed.settings.latent_dim
    drawn = [samples.sample_scene(index, latent_dim, options)[1].yaw for index in range(12)]
    yaw = torch.cat(drawn).double()
    expected = float((yaw - 1.2).abs().rad2deg().mean())
    assert found["yaw_error_degrees"] == pytest.approx(expected, rel=1e-4)
    assert found["images"] == 12
