"""Inception network of FID: its weights, and the libraries that evaluate it.

torch-fidelity and pytorch-fid hold the same network and read the same file of weights. Neither is
needed for training or rendering.
"""

import contextlib
import hashlib
import importlib
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoint_io import safe_load
from siren.tf32 import float32_products
from system.errors import UsageError, nearest_path

# The first digits of the SHA-256 are part of the published file's name.
FILE_NAMES = (
    "weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity's name for it
    "pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid's
)
HASH_PREFIX = "6726825d"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAMES[0]}"
CONNECT_SECONDS = 10.0  # without internet, fail soon
HINT = "pip install -r requirements.txt"
NUM_FEATURES, NUM_LOGITS = 2048, 1008

Network = Callable[[Tensor], Tensor]  # uint8 images (B, 3, H, W) -> float32 (B, D)


class Unavailable(UsageError):
    """A library or file of FID is missing; the text names it and how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of weights."""

    path: Path
    sha256: str

    @property
    def is_official(self) -> bool:
        """Return whether it is the file that published figures are computed with."""
        return self.sha256.startswith(HASH_PREFIX)


def find_weights(given: Path | None, *, takes_any: bool = False) -> Weights:
    """Find the file of weights: the given one, the one in PyTorch's cache, or a download into it.

    Raises UsageError if the given file is missing, or is not the published one and takes_any is
    False; Unavailable if none was given and the download fails.
    """
    path = given if given is not None else _cached_or_downloaded()
    if not path.is_file():
        raise UsageError(f"--inception_weights {path}: no such file.{nearest_path(path)}")
    weights = Weights(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    if not weights.is_official and not takes_any:
        raise UsageError(
            f"{path}: is not the published Inception network (its SHA-256 begins with "
            f"{weights.sha256[:8]}, not {HASH_PREFIX}), so its figures mean nothing beside others; "
            "--any_inception_weights takes it all the same"
        )
    return weights


def _cached_or_downloaded() -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    path = folder / FILE_NAMES[0]
    try:
        urllib.request.urlopen(URL, timeout=CONNECT_SECONDS).close()
        folder.mkdir(parents=True, exist_ok=True)
        # Its progress bar would fill a log file.
        is_shown = sys.stderr.isatty()
        torch.hub.download_url_to_file(URL, str(path), HASH_PREFIX, progress=is_shown)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise Unavailable(
            f"the Inception network cannot be downloaded ({error}); fetch {FILE_NAMES[0]} "
            "elsewhere and name it with --inception_weights"
        ) from error
    return path


def require_torchvision() -> None:
    """Import torchvision, even if its compiled operators do not fit this PyTorch.

    Beside a CPU build of PyTorch, torchvision from PyPI cannot load its compiled operators, which
    need CUDA's libraries, and its import fails when it registers the first of them. Neither library
    here uses them (they are for detection), so declaring their names is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}() -> ()")
        _DECLARED.append(library)  # the declarations end with this object
        import torchvision  # noqa: F401


_DECLARED: list[torch.library.Library] = []


def fidelity_network(weights: Weights, device: torch.device) -> Network:
    """Load torch-fidelity's network: NUM_FEATURES features, then NUM_LOGITS logits without bias.

    Raises Unavailable if torch-fidelity is missing, UsageError if the file holds another network.
    """
    library = fidelity()
    with _explained(weights):
        network = library.FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(weights.path),
        ).to(device)

    @torch.no_grad()
    @float32_products(in_tf32=False)
    def evaluate(images: Tensor) -> Tensor:
        return torch.cat(network(images.to(device)), dim=1)

    return evaluate


def fidelity() -> Any:
    """Import and return the module torch_fidelity; Unavailable if it is not installed."""
    return _imported("torch_fidelity")


def _imported(name: str) -> Any:
    try:
        require_torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{error.name or name} is not installed; {HINT}") from error


def pytorch_fid_network(weights: Weights, device: torch.device) -> Network:
    """Load pytorch-fid's network: NUM_FEATURES features; raises as fidelity_network does."""
    library = _imported("pytorch_fid.inception")
    # It would download a file of its own: replace its download by our file.
    download = library.load_state_dict_from_url
    with _explained(weights), torch.random.fork_rng(devices=[]):
        try:
            library.load_state_dict_from_url = lambda *_, **__: safe_load.read(weights.path)
            network = library.InceptionV3().to(device).eval()
        finally:
            library.load_state_dict_from_url = download

    @torch.no_grad()
    @float32_products(in_tf32=False)
    def evaluate(images: Tensor) -> Tensor:
        (features,) = network(images.to(device).float() / 255)
        return features.flatten(1)

    return evaluate


@contextlib.contextmanager
def _explained(weights: Weights) -> Iterator[None]:
    """Check a file of weights first, and turn errors of loading it into one line."""
    try:
        safe_load.read(weights.path)
        yield
    except UsageError:
        raise
    except Exception as error:  # load_state_dict raises almost anything
        first = str(error).strip().splitlines()[0]
        what = "does not hold the weights of FID's Inception network"
        raise UsageError(f"{weights.path}: {what} ({first})") from error
