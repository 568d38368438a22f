"""Write and read encoder.pth, an encoder for photos that belongs to one generator."""

from pathlib import Path

from checkpoint_io import checkpoints, network_state
from checkpoint_io.checkpoints import SavedGenerator
from checkpoint_io.network_state import StateError, count_entry, entry
from generators.encoder import Encoder

NAME = "encoder.pth"
SMALLEST = 16  # pixels per side of its images: half of the generator's, or that
MAX_COMPONENTS = 2**16


def build(saved: SavedGenerator, image_size: int, num_components: int) -> Encoder:
    """Return an encoder for a generator, with fresh parameters."""
    return Encoder(
        saved.curriculum.build_discriminator(),
        num_features=saved.generator.siren.num_features,
        num_components=num_components,
        image_size=image_size,
    )


def save(path: Path, encoder: Encoder, saved: SavedGenerator) -> None:
    """Write an encoder that was trained on renders of a generator."""
    content = {
        "generator": checkpoints.fingerprint(saved.generator),
        "image_size": encoder.image_size,
        "num_components": len(encoder.components),
        "state": {name: value.cpu() for name, value in encoder.state_dict().items()},
    }
    checkpoints.save(path, "encoder", content)


def beside(saved: SavedGenerator) -> Encoder | None:
    """Load the encoder beside a generator, None if there is none; errors as load."""
    path = checkpoints.beside(saved.path, NAME)
    return load(path, saved) if path.is_file() else None


def load(path: Path, saved: SavedGenerator) -> Encoder:
    """Read what save wrote, in evaluation mode, on the generator's device.

    Raises UsageError if the file cannot be read, or was trained on another generator.
    """
    content = checkpoints.read(path, "encoder")
    with checkpoints.complaints(path):
        if entry(content, "generator", str) != checkpoints.fingerprint(saved.generator):
            raise StateError(f"was trained for another generator than {saved.path}; train it "
                             "again with train_encoder.py --replace, or move it away")  # fmt: skip
        size, count = count_entry(content, "image_size"), count_entry(content, "num_components")
        if count > MAX_COMPONENTS:
            raise StateError(f"has {count} components")
        encoder = network_state.filled(
            network_state.unfilled(lambda: build(saved, size, count)), content.get("state")
        )
        if size not in encoder.trunk.image_sizes():
            raise StateError(f"takes images of {size} px, its layers do not")
    return encoder.to(saved.generator.device).eval().requires_grad_(False)
