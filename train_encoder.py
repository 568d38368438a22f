"""Train an encoder, with which photos are fitted in seconds, on a generator's own renders.

    python train_encoder.py runs/demo

Writes encoder.pth beside the generator, where inverse_render.py finds it. No photos are needed. If
the discriminator lies there too, its layers are the start.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import own_modules  # noqa: F401
from checkpoint_io import checkpoints, encoders
from checkpoint_io.checkpoints import SavedGenerator
from generators import encoder_training
from generators.encoder import Encoder, fit_basis
from generators.encoder_training import EncoderOptions
from generators.sampling import stream
from rendering import viewing
from system import flags
from system.errors import UsageError
from system.files import output_folder
from system.screen import progress_bar

DEFAULTS = EncoderOptions()
MAX_BATCH = 100_000


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Train an encoder for photos on a generator's "
                                  "own renders.")  # fmt: skip
    viewing.add_generator(parser)
    add = parser.add_argument
    add("--steps", type=flags.positive_int, default=DEFAULTS.steps, help="of training")
    add("--batch_size", type=flags.whole(1, MAX_BATCH), default=DEFAULTS.batch_size,
        help="images per step")  # fmt: skip
    add("--renders_per_step", type=flags.whole(1, MAX_BATCH), default=DEFAULTS.renders_per_step,
        help="new images per step; the others were seen before")  # fmt: skip
    add("--replace", action="store_true", help="write over an encoder.pth that is there")
    add("--seed", type=flags.non_negative_int, default=0, help="of all random numbers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train the encoder and write it."""
    args = build_parser().parse_args(argv)
    if args.generator.is_dir():
        args.generator = args.generator / "generator.pth"
    saved = viewing.open_generator(args)
    path = checkpoints.beside(args.generator, encoders.NAME)
    output_folder(path.parent, flag="RUN")
    if path.is_dir() or path.exists() and not args.replace:
        advice = "is a folder" if path.is_dir() else "exists; --replace trains it anew"
        raise UsageError(f"{path}: {advice}")
    torch.manual_seed(args.seed)
    encoder = _first(saved, args.generator)
    options = EncoderOptions(
        steps=args.steps, renders_per_step=args.renders_per_step, batch_size=args.batch_size
    )
    rng = stream(args.seed)
    fit_basis(encoder, saved.generator, saved.curriculum.settings.z_dist, rng)
    with progress_bar(args.steps, "step") as bar:

        def report(_: int, losses: dict[str, float]) -> None:
            texts = (f"{name}={loss:.4f}" for name, loss in losses.items())
            bar.set_postfix_str(", ".join(texts), refresh=False)
            bar.update()

        encoder_training.train_encoder(
            encoder,
            saved.generator,
            saved.curriculum.poses(),
            saved.curriculum.evaluation_render(saved.last_step),
            options,
            kind=saved.curriculum.settings.z_dist,
            rng=rng,
            report=report,
        )
    encoders.save(path, encoder, saved)
    print(path)
    return 0


def _first(saved: SavedGenerator, generator: Path) -> Encoder:
    """Return an untrained encoder; its layers are the discriminator's, if that is there."""
    curriculum, siren = saved.curriculum, saved.generator.siren
    largest = curriculum.stage_settings(saved.last_step).img_size
    encoder = encoders.build(
        saved,
        image_size=max(largest // 2, min(largest, encoders.SMALLEST)),
        num_components=min(siren.z_dim, 2 * siren.num_features),
    )
    pitch, _ = curriculum.poses().center()
    encoder.middle.copy_(torch.tensor([pitch, curriculum.settings.fov]))
    path = checkpoints.beside(generator, "discriminator.pth")
    if path.is_file():
        _, critic = checkpoints.load_discriminator(path, curriculum)
        layers = {k: v for k, v in critic.state_dict().items() if not k.startswith("final_layer.")}
        encoder.trunk.load_state_dict(layers, strict=False)
    return encoder.to(saved.generator.device)


if __name__ == "__main__":
    sys.exit(flags.run(main))
