"""Image quality: Inception features of real and generated images, and metrics of them.

Images are processed in batches of BLOCK, in the order of their numbers; batch b belongs to rank
b mod world size. The batches are the same for any number of ranks, which therefore does not change
a figure.

Legend: N images, D numbers per image (features, then logits).
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoint_io import checkpoints
from checkpoint_io.network_state import tensor_entry
from distributed import collectives
from distributed.processes import Place
from image_io.decoding import Pixels
from metrics import inception
from metrics.inception import NUM_FEATURES, NUM_LOGITS, Network, Weights
from metrics.real_images import RealSet
from system.screen import progress_bar

BLOCK = 32  # images in a batch of the network
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults, as in the published script
IS_SPLITS = 10
NEIGHBORS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
LEAST = {  # the fewest generated and real images of each metric
    "FID": (2, 2),  # for covariances
    "KID": (2, 2),
    "IS": (IS_SPLITS, 0),
    "precision and recall": (NEIGHBORS + 1, NEIGHBORS + 1),
}
KEYS = {  # torch-fidelity's names: ours
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid_mean",
    "kernel_inception_distance_std": "kid_std",
    "inception_score_mean": "is_mean",
    "inception_score_std": "is_std",
    "precision": "precision",
    "recall": "recall",
}
SHUFFLE_SEED = 2020  # torch-fidelity's default, of the subsets and splits

ImageOf = Callable[[int], Tensor]  # number -> (3, H, W) uint8


def blocks_of(total: int, place: Place) -> Iterator[range]:
    """Yield the numbers of a rank's images, batch by batch."""
    for start in range(place.rank * BLOCK, total, place.world_size * BLOCK):
        yield range(start, min(start + BLOCK, total))


def features_of(
    image_of: ImageOf,
    total: int,
    network: Network,
    width: int,
    place: Place,
    *,
    title: str,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Compute features (N, D) of images 0..N-1 together with all ranks, which all return them.

    total is N, width D. image_of returns the image of a number, and is called for this rank's share
    only. If is_stopped, which tells whether this rank was asked to stop, is true on one, all return
    None.
    """
    features = torch.zeros(total, width)
    count = sum(len(block) for block in blocks_of(total, place))
    with progress_bar(count, "image", title, is_left=False, is_shown=place.is_main) as bar:
        for block in blocks_of(total, place):
            if is_stopped():
                break
            images = []
            for number in block:
                images.append(image_of(number))
                bar.update()
            features[block.start : block.stop] = network(torch.stack(images)).cpu()
    if collectives.agree_to_stop(is_stopped()):
        return None
    collectives.add_up(features)
    return features


def features_of_stream(
    images: Iterator[Pixels], network: Network, *, total: int, title: str
) -> Tensor:
    """Compute features (N, D) of a stream of images (3, H, W) uint8, about total of them."""
    parts = []
    with progress_bar(total, "image", title, is_left=False) as bar:
        while block := list(itertools.islice(images, BLOCK)):
            parts.append(network(torch.from_numpy(np.stack(block))).cpu())
            bar.update(len(block))
    return torch.cat(parts) if parts else torch.zeros(0, NUM_FEATURES)


def real_features(
    real: RealSet, network: Network, weights: Weights, cache_dir: Path, place: Place
) -> Tensor:
    """Return features (N, NUM_FEATURES) of real images.

    They are cached in cache_dir under the hashes of images and network.
    """
    path = cache_dir / f"{real.fingerprint[:32]}-{weights.sha256[:16]}.pth"
    is_cached = not collectives.agree_to_stop(not path.is_file() if place.is_main else False)
    features = torch.zeros(len(real), NUM_FEATURES)
    if is_cached and place.is_main:
        known = checkpoints.read(path, "features")
        with checkpoints.complaints(path):
            return tensor_entry(known, "features", tuple(features.shape))
    if is_cached:
        return features
    found = features_of(
        real.image, len(real), network, NUM_FEATURES + NUM_LOGITS, place, title="real images"
    )
    assert found is not None  # nothing asks it to stop
    features = found[:, :NUM_FEATURES]
    if place.is_main:
        checkpoints.save(path, "features", {"features": features.clone()})
    return features


def too_few(num_generated: int, num_real: int) -> dict[str, str]:
    """Return the metrics that need more images: {"IS": "needs 10 generated images"}."""
    lines = {}
    for name, needed in LEAST.items():
        pairs = zip(needed, (num_generated, num_real), ("generated", "real"), strict=True)
        lacking = [f"{least} {kind}" for least, count, kind in pairs if count < least]
        if lacking:
            lines[name] = f"needs {' and '.join(lacking)} images"
    return lines


def image_metrics(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Compute FID, KID, IS, precision and recall by torch-fidelity's own functions.

    generated (N, NUM_FEATURES + NUM_LOGITS), real (M, NUM_FEATURES). Returns fid; kid_mean and
    kid_std over subsets of at most KID_SUBSET_SIZE images (not times 100); is_mean and is_std over
    splits; precision and recall in the same feature space. Those for which there are too few images
    are left out.
    """
    inception.fidelity()
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    features, logits = generated.split([NUM_FEATURES, NUM_LOGITS], dim=1)
    features, logits, real = features.contiguous(), logits.contiguous(), real.contiguous()
    statistics = metric_fid.fid_features_to_statistics
    computed: dict[str, Callable[[], dict[str, float]]] = {
        "FID": lambda: metric_fid.fid_statistics_to_metric(
            statistics(features.double()), statistics(real.double()), verbose=False
        ),
        "KID": lambda: metric_kid.kid_features_to_metric(
            features, real, kid_subsets=KID_SUBSETS, rng_seed=SHUFFLE_SEED, verbose=False,
            kid_subset_size=min(KID_SUBSET_SIZE, len(features), len(real)),
        ),
        "IS": lambda: metric_isc.isc_features_to_metric(logits, IS_SPLITS, rng_seed=SHUFFLE_SEED),
        "precision and recall": lambda: metric_prc.prc_features_to_metric(
            features, real, prc_neighborhood=NEIGHBORS, save_cpu_ram=False, verbose=False
        ),
    }  # fmt: skip
    lacking = too_few(len(generated), len(real))
    parts = [compute() for name, compute in computed.items() if name not in lacking]
    return {KEYS[key]: float(part[key]) for part in parts for key in part if key in KEYS}


def metric_settings(num_generated: int, num_real: int) -> dict[str, Any]:
    """Return the settings of image_metrics."""
    return {
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": min(KID_SUBSET_SIZE, num_generated, num_real),
        "kid_kernel": "polynomial, degree 3, gamma 1/2048, offset 1",
        "is_splits": IS_SPLITS,
        "neighbors": NEIGHBORS,
        "shuffle_seed": SHUFFLE_SEED,
    }
