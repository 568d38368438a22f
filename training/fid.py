"""Measure FID while training: the averaged generator against the run's own dataset.

The network and the statistics are those of pytorch-fid. Images are rendered as for evaluation
(evaluation background and cameras, no noise, no jitter), at the curriculum's preview_size; every
rank renders its share. Training draws the same random numbers with and without FID.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_io import checkpoints
from checkpoint_io.network_state import tensor_entry
from config.curriculum import Curriculum
from datasets import DatasetOptions
from distributed import collectives
from distributed.processes import Place
from generators.fields import default_chunk
from generators.generators import ImplicitGenerator3d
from image_io import decoding, png
from image_io.files import Listing, Skipped
from metrics import features, inception, real_images, samples
from metrics.frechet import Gaussian, fitted_gaussian, frechet_distance
from metrics.inception import NUM_FEATURES, Network, Unavailable, Weights
from metrics.real_images import Choice
from metrics.samples import SampleOptions
from system.files import write_file
from training.options import FidOptions

NUM_REAL = 8000  # as published
SEED = 0  # of latents and cameras: the same at every step, so that steps can be compared
FREE_BYTES = 500 * 2**20  # the real images' statistics, and best/
FID_FILE = "fid.txt"


class FidMeter:
    """Measures generators of one curriculum; every rank has one and all measure together."""

    def __init__(
        self, network: Network, real: Gaussian, curriculum: Curriculum, num_images: int
    ) -> None:
        self.network, self.real = network, real
        self.curriculum, self.num_images = curriculum, num_images

    def measure(
        self,
        generator: ImplicitGenerator3d,
        step: int,
        place: Place,
        is_stopped: Callable[[], bool],
    ) -> float | None:
        """Return the FID of a generator after step steps; None when asked to stop meanwhile."""
        curriculum = self.curriculum
        render = curriculum.preview_render(step - 1, curriculum.settings.preview_size)
        sampling = SampleOptions.of(curriculum, render, seed=SEED)
        generator.points_per_chunk = default_chunk(place.device)

        def image_of(number: int) -> Tensor:
            return png.to_uint8(samples.sample_image(generator, number, sampling))

        found = features.features_of(
            image_of, self.num_images, self.network, NUM_FEATURES, place,
            title="FID", is_stopped=is_stopped,
        )  # fmt: skip
        if found is None:
            return None
        return frechet_distance(fitted_gaussian(found), self.real)


def open_meter(
    place: Place,
    options: FidOptions,
    curriculum: Curriculum,
    data: DatasetOptions,
    listing: Listing,
    cache_dir: Path,
) -> tuple[FidMeter | None, str]:
    """Return a meter and its description, or None and the reason; all ranks call it.

    Raises UsageError if the file of weights that was given is not the right one.
    """
    if not place.is_main:
        collectives.wait_for_all()  # the main process may download the network
    reason, network, weights = "", None, None
    try:
        weights = inception.find_weights(options.weights, takes_any=options.takes_any_weights)
        network = inception.pytorch_fid_network(weights, place.device)
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
        if free < FREE_BYTES:
            raise Unavailable(f"only {free // 2**20} MB are free at {cache_dir}")
    except Unavailable as error:
        reason = f"FID is not measured: {error}"
    if place.is_main:
        collectives.wait_for_all()
    if collectives.agree_to_stop(network is None or bool(reason)):
        return None, reason or "FID is not measured: another process cannot"
    assert network is not None  # as agreed
    assert weights is not None
    choice = Choice(options=data, image_size=curriculum.settings.preview_size, count=NUM_REAL)
    real = _real_statistics(place, choice, listing, network, weights, cache_dir)
    kind = "" if weights.is_official else " (of a network that is not the published one)"
    text = f"FID{kind} every {options.interval} steps, {options.num_images} images"
    return FidMeter(network, real, curriculum, options.num_images), text


def _real_statistics(
    place: Place,
    choice: Choice,
    listing: Listing,
    network: Network,
    weights: Weights,
    cache_dir: Path,
) -> Gaussian:
    """Return mean and covariance of the real images' features, which cache_dir keeps."""
    made = json.dumps([decoding.VERSION, real_images.manifest(choice, listing, "clean")])
    key = hashlib.sha256(f"{made} {weights.sha256} pytorch-fid".encode()).hexdigest()[:32]
    path = cache_dir / f"fid-{key}.pth"
    size = NUM_FEATURES
    real = Gaussian(torch.zeros(size).double(), torch.zeros(size, size).double())
    if place.is_main:
        if not path.is_file():
            total = len(choice.indices(listing.count))
            blocks = real_images.chosen_images(choice, listing)
            readable = (item for block in blocks for item in block if not isinstance(item, Skipped))
            found = features.features_of_stream(readable, network, total=total, title="real images")
            checkpoints.save(path, "real_statistics", fitted_gaussian(found)._asdict())
        content = checkpoints.read(path, "real_statistics")
        with checkpoints.complaints(path):
            real = Gaussian(
                tensor_entry(content, "mean", (size,)).double(),
                tensor_entry(content, "covariance", (size, size)).double(),
            )
    collectives.broadcast_state(real)  # other machines have disks of their own
    return real


def note(folder: Path, step: int, fid: float) -> bool:
    """Add a line `step:fid` to fid.txt and drop later ones; return whether it is the lowest."""
    path = folder / FID_FILE
    earlier = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        at, _, value = line.partition(":")
        with contextlib.suppress(ValueError):
            if int(at) < step:
                earlier.append((int(at), float(value)))
    lines = [*earlier, (step, fid)]
    write_file(path, "".join(f"{at}:{value}\n" for at, value in lines).encode())
    return all(fid < value for _, value in earlier)
