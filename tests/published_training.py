"""Train as the published code does, in a separate plain implementation for comparison.

It works on the networks and files of `published_files`. Everything is spelled out; nothing of the
project is used. R1 differentiates the gradient of the discriminator.

Legend: B images, Z width of the latent.
"""

import math

import torch
from published_files import Z_DIM
from published_render import render
from torch.nn import functional as F


def convolve(layer, x):
    """Apply a convolution; a CoordConv gets each pixel's row and column, from -1 to 1, as well."""
    if not hasattr(layer, "addcoords"):
        return layer(x)
    count, _, height, width = x.shape
    rows = torch.linspace(-1, 1, height)[:, None].expand(count, 1, height, width)
    columns = torch.linspace(-1, 1, width).expand(count, 1, height, width)
    return layer.conv(torch.cat([x, rows, columns], 1))


def judge(network, images, alpha):
    """Return logits (B,), latents (B, Z) and poses (B, 2); the last two only of encoders."""
    level = network.img_size_to_layer[images.shape[-1]]
    x = network.fromRGB[level].model(images)
    for index in range(level, len(network.layers)):
        if index == level + 1:
            half = images[:, :, ::2, ::2]  # nearest neighbor
            x = alpha * x + (1 - alpha) * network.fromRGB[index].model(half)
        block = network.layers[index]
        first, _, second, _ = block.network
        y = F.leaky_relu(convolve(first, x), 0.2)
        y = F.leaky_relu(convolve(second, y), 0.2)
        if y.shape[-1] == x.shape[-1]:  # not strided
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        x = (y + (x if block.proj is None else block.proj(x))) / math.sqrt(2)
    outputs = network.final_layer(x)[:, :, 0, 0]
    return outputs[:, 0], outputs[:, 1 : 1 + Z_DIM], outputs[:, 1 + Z_DIM :]


def identity(latents, poses, scenes, at):
    """Return the identity loss; scenes are latents (B, Z), pitch (B,) and yaw (B,)."""
    if not latents.numel():
        return 0
    z, pitch, yaw = scenes
    return (
        at["z_lambda"] * ((latents - z) ** 2).mean()
        + at["pos_lambda"] * ((poses - torch.stack([pitch, yaw], 1)) ** 2).mean()
    )


def fakes(generator, scenes, at):
    """Return images (B, 3, H, W); the jitter comes from PyTorch's own stream."""
    z, pitch, yaw = scenes
    frequencies, phases = generator.siren.mapping_network(z)
    std = max(0, 1 - at["step"] / 5000)
    return render(generator.siren, frequencies, phases, pitch, yaw, std=std, **at["render"])[0]


def descend(network, state, loss, rate, clip):
    """Step by Adam with betas (0, 0.9) along the gradient, whose norm is clipped."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        gradient = gradient * min(1, clip / (norm + 1e-6))
        entry = state.setdefault(index, {"step": 0, "exp_avg_sq": torch.zeros_like(gradient)})
        entry["step"] += 1
        entry["exp_avg"] = gradient
        entry["exp_avg_sq"] = 0.9 * entry["exp_avg_sq"] + 0.1 * gradient**2
        size = (entry["exp_avg_sq"] / (1 - 0.9 ** entry["step"])).sqrt() + 1e-8
        parameter.data -= rate * gradient / size


def train(made, real, scenes, at):
    """Train the networks of a run's seven files for one step; return the two losses.

    scenes are those of the discriminator's step and of the generator's.
    """
    generator, critic, alpha = made["generator"], made["discriminator"], at["alpha"]
    real.requires_grad_()
    with torch.no_grad():
        images = fakes(generator, scenes[0], at)
    on_real, (on_fake, *heads) = judge(critic, real, alpha)[0], judge(critic, images, alpha)
    (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    penalty = at["r1_lambda"] / 2 * (slope**2).sum((1, 2, 3)).mean()
    loss = F.softplus(on_fake).mean() + F.softplus(-on_real).mean() + penalty
    loss = loss + identity(*heads, scenes[0], at)
    descend(critic, made["optimizer_D"]["state"], loss, at["disc_lr"], at["grad_clip"])

    logits, *heads = judge(critic, fakes(generator, scenes[1], at), alpha)
    share = max(0.99 ** (at["step"] / at["topk_interval"]), at["topk_v"])
    best = logits.topk(math.ceil(share * len(logits))).values
    generator_loss = F.softplus(-best).mean() + identity(*heads, scenes[1], at)
    descend(generator, made["optimizer_G"]["state"], generator_loss, at["gen_lr"], at["grad_clip"])
    for average in made["averages"]:
        average["num_updates"] += 1
        count = average["num_updates"]
        decay = min(average["decay"], (1 + count) / (10 + count))
        for shadow, parameter in zip(average["shadow_params"], generator.parameters(), strict=True):
            shadow.data = decay * shadow + (1 - decay) * parameter.detach()
    return loss.detach(), generator_loss.detach()
