"""metrics.json: figures of a generator, together with everything that decides them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from metrics import inception
from metrics.inception import Weights
from metrics.real_images import FILE_FORMATS, Protocol, RealSet, read_json
from metrics.samples import SampleOptions
from system import machine
from system.files import json_bytes, write_file


def about(saved: SavedGenerator, *, seed: int, psi: float) -> dict[str, Any]:
    """Generator, seed, truncation and library versions of a measurement."""
    return {
        "generator": {
            "file": str(saved.path),
            "weights": saved.average,
            "fingerprint": checkpoints.fingerprint(saved.generator),
            "step": saved.step,
            "curriculum": saved.curriculum.name,
        },
        "seed": seed,
        "psi": psi,
        "versions": machine.versions(),
    }


def image_settings(
    real: RealSet, weights: Weights, sampling: SampleOptions, protocol: Protocol
) -> dict[str, Any]:
    """Return what decides the image metrics."""
    return {
        "num_real": len(real),
        "image_size": sampling.render.image_size,
        "render": asdict(sampling.render),
        "is_jittered": sampling.is_jittered,
        "supersampling": sampling.supersampling,
        "poses": asdict(sampling.poses),
        "file_format": FILE_FORMATS[protocol],
        "real_images": {
            "content": real.fingerprint,
            "image_size": real.image_size,
            "made": real.made,
        },
        "inception": {
            "sha256": weights.sha256,
            "is_official": weights.is_official,
            "resize": "torch-fidelity: bilinear to 299 as TensorFlow 1 does",
            "torch_fidelity": inception.fidelity().__version__,
        },
    }


def update(path: Path, about: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a part to metrics.json and drop older parts that belong to other entries of about."""
    old = read_json(path) or {}
    if any(old.get(key) != about[key] for key in about):
        old = {}
    kept = {key: value for key, value in old.items() if key not in about}
    write_file(path, json_bytes({**about, **kept, **part}, indent=1))
