"""Write files in the exact layout of the published code, without that code.

The classes here have the attributes, the module tree and the parameter order of the published ones
(REFERENCE of the file format: whole objects, pickled with protocol 2). Where the pickle has to name
a class, `save` writes the published name, so nothing needs to be importable under it.
"""

import collections
import io
import pickle
import types
import warnings

import torch
from torch import nn

Z_DIM = 6


class _Pickler(pickle._Pickler):
    """Pickles the classes here under their published names."""

    def save_global(self, obj, name=None):
        published = getattr(obj, "published_name", None)
        if published is None:
            return super().save_global(obj, name)
        module, _, name = published.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)
        return None

    dispatch = {**pickle._Pickler.dispatch, type: save_global}


class _PublishedPickle(types.ModuleType):
    """The pickle_module argument of torch.save."""

    Pickler = _Pickler

    @staticmethod
    def dump(obj, file, protocol):
        _Pickler(file, protocol).dump(obj)


def save(obj, path, *, legacy=False):
    """Save like the published code; legacy is the format before PyTorch 1.6."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't retrieve source code")  # of classes made below
        torch.save(
            obj,
            path,
            pickle_module=_PublishedPickle("pickle"),
            _use_new_zipfile_serialization=not legacy,
        )


def saved_bytes(obj, **options):
    file = io.BytesIO()
    save(obj, file, **options)
    return file.getvalue()


def named(module):
    """Return a decorator that pickles a class as one of that module."""

    def mark(cls):
        cls.published_name = f"{module}.{cls.__name__}"
        return cls

    return mark


siren_class = named("siren.siren")


@siren_class
class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(30 * x)


@siren_class
class FiLMLayer(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.layer = nn.Linear(input_dim, hidden_dim)

    def forward(self, x, frequency, phase):
        return torch.sin(frequency[:, None] * self.layer(x) + phase[:, None])


@siren_class
class CustomMappingNetwork(nn.Module):
    def __init__(self, z_dim, width, outputs):
        super().__init__()
        layers, previous = [], z_dim
        for _ in range(3):
            layers += [nn.Linear(previous, width), nn.LeakyReLU(0.2, inplace=True)]
            previous = width
        self.network = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, z):
        outputs = self.network(z)
        half = outputs.shape[-1] // 2
        return outputs[..., :half], outputs[..., half:]


@siren_class
class UniformBoxWarp(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.scale_factor = 2 / side

    def forward(self, points):
        return points * self.scale_factor


class _Field(nn.Module):
    """Base class of the four fields; a subclass names its parts."""

    side, embedding = None, None

    def __init__(self, num_layers=2, width=8):
        super().__init__()
        self.width = width
        self.device, self.z_dim, self.input_dim, self.output_dim = None, Z_DIM, 3, 4
        self.hidden_dim = self.width
        inputs = 3
        if self.embedding is not None:
            self.spatial_embeddings = nn.Parameter(torch.randn(1, 32, *[self.embedding] * 3) * 0.1)
            inputs += 32
        widths = [inputs] + [self.width] * num_layers
        self.network = nn.ModuleList(
            FiLMLayer(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)
        )
        self.final_layer = nn.Linear(self.width, 1)
        self.color_layer_sine = FiLMLayer(self.width + 3, self.width)
        self.color_layer_linear = nn.Sequential(nn.Linear(self.width, 3), nn.Sigmoid())
        self.mapping_network = CustomMappingNetwork(Z_DIM, 8, 2 * self.width * (num_layers + 1))
        if self.side is not None:
            self.gridwarper = UniformBoxWarp(self.side)
        self.start()

    @torch.no_grad()
    def start(self):
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("mapping"):
                bound = (6 / module.in_features) ** 0.5 / 25
                module.weight.uniform_(-bound, bound)
        self.network[0].layer.weight.uniform_(-1 / 3, 1 / 3)
        for layer in self.mapping_network.network[::2]:
            nn.init.kaiming_normal_(layer.weight, a=0.2)
        self.mapping_network.network[-1].weight.mul_(0.25)

    def forward(self, points, frequencies, phases, directions):
        x = points if self.side is None else self.gridwarper(points)
        if self.embedding is not None:
            at = x.reshape(len(x), 1, 1, -1, 3)
            features = nn.functional.grid_sample(
                self.spatial_embeddings.expand(len(x), -1, -1, -1, -1), at, align_corners=True
            )
            x = torch.cat([features.reshape(len(x), 32, -1).permute(0, 2, 1), x], -1)
        frequencies = frequencies * 15 + 30
        width = self.width
        for index, layer in enumerate(self.network):
            part = slice(index * width, (index + 1) * width)
            x = layer(x, frequencies[..., part], phases[..., part])
        density = self.final_layer(x)
        color = self.color_layer_sine(
            torch.cat([directions, x], -1), frequencies[..., -width:], phases[..., -width:]
        )
        return torch.cat([self.color_layer_linear(color), density], -1)


@siren_class
class TALLSIREN(_Field):
    pass


@siren_class
class SPATIALSIRENBASELINE(_Field):
    side = 0.24


@siren_class
class EmbeddingPiGAN128(_Field):
    side, embedding = 0.24, 96


@siren_class
class EmbeddingPiGAN256(_Field):
    side, embedding = 0.24, 64


FIELDS = {
    cls.__name__: cls
    for cls in (TALLSIREN, SPATIALSIRENBASELINE, EmbeddingPiGAN128, EmbeddingPiGAN256)
}


@named("generators.generators")
class ImplicitGenerator3d(nn.Module):
    def __init__(self, siren):
        super().__init__()
        self.z_dim = Z_DIM
        self.siren = siren
        self.epoch, self.step = 3, 40
        self.device = torch.device("cpu")
        self.avg_frequencies = torch.zeros(1, 4)
        self.avg_phase_shifts = torch.zeros(1, 4)


@named("torch_ema.ema")
class ExponentialMovingAverage:
    def __init__(self, parameters, decay):
        self.decay, self.num_updates = decay, 42
        self.shadow_params = [p.clone().detach() + decay * 0.01 for p in parameters]
        self.collected_params = []

    def state_dict(self):
        return {**vars(self), "collected_params": None}  # newer ones write None


def discriminator_classes(module, *, has_coordinates):
    """Return the blocks and convolution of a discriminator family, under module's names."""
    in_module = named(f"discriminators.{module}")

    @in_module
    class AdapterBlock(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, channels, 1, padding=0), nn.LeakyReLU(0.2))

    @in_module
    class AddCoords(nn.Module):
        pass

    @in_module
    class CoordConv(nn.Module):
        def __init__(self, before, after, **options):
            super().__init__()
            self.addcoords = AddCoords()
            self.conv = nn.Conv2d(before + 2, after, **options)

    return types.SimpleNamespace(
        in_module=in_module,
        adapter=AdapterBlock,
        conv=CoordConv if has_coordinates else nn.Conv2d,
    )


DISCRIMINATORS = (
    *("ProgressiveDiscriminator", "ProgressiveEncoderDiscriminator", "StridedDiscriminator"),
    *("CCSDiscriminator", "CCSEncoderDiscriminator"),
)
PROGRESSIVE_WIDTHS = (16, 32, 64, 128, 256, 400, 400, 400, 400)
STRIDED_WIDTHS = (32, 64, 128, 256, 400, 400, 400, 400)


def discriminator(name, *, latent_dim=Z_DIM, max_width=8, widths=None):
    """Return a discriminator of one of the five classes, as an object of the published code."""
    is_progressive = name.startswith("Progressive")
    kit = discriminator_classes(
        "discriminators" if is_progressive else "sgdiscriminators",
        has_coordinates=name != "StridedDiscriminator",
    )
    block_name = {"Str": "StridedResidualConvBlock", "CCS": "ResidualCCBlock"}.get(
        name[:3], "ResidualCoordConvBlock"
    )

    def block_init(self, before, after):
        nn.Module.__init__(self)
        self.network = nn.Sequential(
            kit.conv(before, after, kernel_size=3, padding=1),
            nn.LeakyReLU(0.2),
            kit.conv(after, after, kernel_size=3, padding=1, stride=1 if is_progressive else 2),
            nn.LeakyReLU(0.2),
        )
        if not is_progressive or before != after:
            self.proj = nn.Conv2d(before, after, 1, stride=1 if is_progressive else 2)
        elif is_progressive:
            self.proj = None
            self.downsample = True

    block = kit.in_module(type(block_name, (nn.Module,), {"__init__": block_init}))
    source = PROGRESSIVE_WIDTHS if is_progressive else STRIDED_WIDTHS
    widths = widths or [min(width, max_width) for width in source]

    def init(self):
        nn.Module.__init__(self)
        self.epoch, self.step = 3, 40
        self.layers = nn.ModuleList(
            block(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)
        )
        self.fromRGB = nn.ModuleList(kit.adapter(width) for width in widths)
        outputs = 1 + (latent_dim + 2 if "Encoder" in name else 0)
        self.final_layer = nn.Conv2d(widths[-1], outputs, 2)
        if name in ("StridedDiscriminator", "CCSDiscriminator"):
            self.pose_layer = nn.Linear(2, widths[-1])  # nothing uses it
        self.img_size_to_layer = {2**i: len(widths) - i for i in range(1, len(widths) + 1)}

    return kit.in_module(type(name, (nn.Module,), {"__init__": init}))()


def optimizer_state(parameters, *, unused=(), num_groups=1, step=42):
    """Return the state dict of PyTorch 1.8's Adam after some steps."""
    parameters = list(parameters)
    group = {"lr": 6e-5, "betas": (0, 0.9), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
             "initial_lr": 6e-5}  # fmt: skip
    groups = [{**group, "params": list(range(len(parameters)))}]
    groups += [{**group, "params": []} for _ in range(num_groups - 1)]
    state = {
        index: {
            "step": step,
            "exp_avg": torch.randn_like(parameter) * 1e-3,
            "exp_avg_sq": torch.rand_like(parameter) * 1e-6,
        }
        for index, parameter in enumerate(parameters)
        if index not in unused
    }
    return {"state": state, "param_groups": groups}


SCALER = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000,
          "_growth_tracker": 7}  # fmt: skip


def generator(model="SPATIALSIRENBASELINE", num_layers=2, width=8):
    return ImplicitGenerator3d(FIELDS[model](num_layers, width))


def write_run(folder, *, model="SPATIALSIRENBASELINE", critic="CCSDiscriminator", num_groups=1):
    """Write the seven files of a published run; return their content."""
    folder.mkdir(parents=True, exist_ok=True)
    made = collections.OrderedDict()
    made["generator"] = network = generator(model)
    made["discriminator"] = judge = discriminator(critic)
    made["ema"] = ExponentialMovingAverage(network.parameters(), 0.999)
    made["ema2"] = ExponentialMovingAverage(network.parameters(), 0.9999).state_dict()
    made["optimizer_G"] = optimizer_state(network.parameters(), num_groups=num_groups)
    names = [name for name, _ in judge.named_parameters()]
    unused = (0, 1, *(i for i, name in enumerate(names) if name.startswith("pose_layer.")))
    made["optimizer_D"] = optimizer_state(judge.parameters(), unused=unused)
    made["scaler"] = dict(SCALER)
    for name, obj in made.items():
        save(obj, folder / f"{name}.pth")
    return made
