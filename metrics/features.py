"""Image quality: Inception features of real and generated images, and metrics of them.

Images are processed in batches of BLOCK, in the order of their numbers; batch b belongs to rank
b mod world size. The batches are the same for any number of ranks, which therefore does not change
a figure.

Legend: N images, D numbers per image (features, then logits).
"""

import itertools
import json
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
from system.errors import UsageError
from system.files import replaced
from system.screen import progress_bar

BLOCK = 32  # images in a batch of the network
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults, as in the published script
IS_SPLITS = 10
NEIGHBORS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
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

    They return None where one of them was asked to stop meanwhile.

    Args:
        image_of: returns the image of a number; called for this rank's share only.
        total: N.
        network: maps uint8 images to features.
        width: D.
        place: this rank.
        title: of the progress bar.
        is_stopped: returns whether this rank was asked to stop.
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
) -> tuple[Tensor, str]:
    """Return features (N, NUM_FEATURES) of real images, and the hash of their content.

    They are cached in cache_dir under the hashes of content and network. A second cache file maps
    the names, sizes and times of a folder's files to the hash of their content, so that they are
    not read again.
    """
    known = cache_dir / f"{real.listing_key[:32]}.json"
    content = _known_content(known)
    if content is None:
        content = real.content_hash() if place.is_main else ""
    collectives.wait_for_all()  # no rank writes while another still looks
    path = cache_dir / f"{content[:32]}-{weights.sha256[:16]}.pth"
    is_cached = not collectives.agree_to_stop(not path.is_file() if place.is_main else False)
    if is_cached:
        features: Tensor = (
            _known_features(path, len(real))
            if place.is_main
            else torch.zeros(len(real), NUM_FEATURES)
        )
    else:
        found = features_of(
            real.image, len(real), network, NUM_FEATURES + NUM_LOGITS, place, title="real images"
        )
        assert found is not None  # nothing asks it to stop
        features = found[:, :NUM_FEATURES]
    if place.is_main:
        if not is_cached:
            checkpoints.save(path, "features", {"features": features.clone()})
        with replaced(known) as file:
            file.write(json.dumps({"content": content}).encode())
    return features, content


def _known_features(path: Path, count: int) -> Tensor:
    content = checkpoints.read(path, "features")
    with checkpoints.complaints(path):
        return tensor_entry(content, "features", (count, NUM_FEATURES))


def _known_content(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text())["content"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if isinstance(content, str) else None


def image_metrics(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Compute FID, KID, IS, precision and recall by torch-fidelity's own functions.

    Args:
        generated: (N, NUM_FEATURES + NUM_LOGITS) of generated images.
        real: (M, NUM_FEATURES) of real ones.

    Returns:
        fid; kid_mean and kid_std over subsets of at most KID_SUBSET_SIZE images (not times 100);
        is_mean and is_std over splits; precision and recall in the same feature space.

    Raises:
        UsageError: there are too few images.
    """
    if min(len(generated), len(real)) <= NEIGHBORS + 1:
        raise UsageError(
            f"{len(generated)} generated and {len(real)} real images are too few to compare"
        )
    inception.fidelity()
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    features, logits = generated.split([NUM_FEATURES, NUM_LOGITS], dim=1)
    features, logits, real = features.contiguous(), logits.contiguous(), real.contiguous()
    statistics = [metric_fid.fid_features_to_statistics(part.double()) for part in (features, real)]
    subset = min(KID_SUBSET_SIZE, len(features), len(real))
    found = {
        **metric_fid.fid_statistics_to_metric(*statistics, verbose=False),
        **metric_kid.kid_features_to_metric(
            features, real, kid_subsets=KID_SUBSETS, kid_subset_size=subset,
            rng_seed=SHUFFLE_SEED, verbose=False,
        ),
        **metric_isc.isc_features_to_metric(logits, IS_SPLITS, rng_seed=SHUFFLE_SEED),
        **metric_prc.prc_features_to_metric(
            features, real, prc_neighborhood=NEIGHBORS, save_cpu_ram=False, verbose=False
        ),
    }  # fmt: skip
    names = {
        "fid": metric_fid.KEY_METRIC_FID,
        "kid_mean": metric_kid.KEY_METRIC_KID_MEAN,
        "kid_std": metric_kid.KEY_METRIC_KID_STD,
        "is_mean": metric_isc.KEY_METRIC_ISC_MEAN,
        "is_std": metric_isc.KEY_METRIC_ISC_STD,
        "precision": metric_prc.KEY_METRIC_PRECISION,
        "recall": metric_prc.KEY_METRIC_RECALL,
    }
    return {name: float(found[key]) for name, key in names.items()}


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
