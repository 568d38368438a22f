"""Find a free port for the page, and print the address that a visitor types."""

import argparse
import contextlib
import errno
import ipaddress
import shlex
import socket
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from system.errors import UsageError

DEFAULT_PORTS = range(8080, 8180)
TAKEN = (errno.EADDRINUSE, errno.EACCES)  # the second for ports that Windows reserves
USUAL_PORTS = {"http": 80, "https": 443}
WILDCARDS = ("0.0.0.0", "::")  # hosts that mean every address of this machine


def free_port(host: str, wanted: int | None) -> int:
    """Return a port at which a page can be served: wanted, or the first free default port.

    Raises:
        UsageError: the host is not of this machine, or no such port is free.
    """
    ports = DEFAULT_PORTS if wanted is None else [wanted]
    for port in ports:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno in TAKEN and port != ports[-1]:
                continue
            place = f"--host {host}" + (f" --port {wanted}" if wanted else "")
            text = f"{place}: no page can be served there ({error.strerror})"
            raise UsageError(text) from error
        break
    if port != ports[0]:
        print(f"port {ports[0]} is taken; using port {port}", file=sys.stderr)
    return port


def announce(host: str, port: int, environ: Mapping[str, str]) -> None:
    """Print the address as a visitor types it; warn if other machines can reach it."""
    shown = socket.gethostname() if host in WILDCARDS else host
    shown = f"[{shown}]" if ":" in shown else shown
    if not is_loopback(host):
        print(
            f"--host {host}: everybody who can reach this machine over the network can use this "
            f"page. There is no password and no encryption: they can look at this run's "
            "generators, keep this machine busy, and write pictures, videos, meshes and fits of "
            "their photos into --output_dir. They can neither read nor write other files.",
            file=sys.stderr,
        )
    elif len(ssh := environ.get("SSH_CONNECTION", "").split()) == 4:
        command = _tunnel(shown, port, environ.get("USER", "USER"), *ssh[2:])
        print("On the computer at which you sit, run this (if you know this machine by another "
              f"name, with that one):\n    {command}\nand open there")  # fmt: skip
    print(f"http://{shown}:{port}  (Ctrl-C ends it)", flush=True)


def _tunnel(host: str, port: int, user: str, reached: str, ssh_port: str) -> str:
    """Return the command by which another computer visits host:port of this machine through ssh.

    user is the person's name on this machine; reached and ssh_port are where the person's ssh has
    reached it. A job on a cluster inherits them, but runs on another machine.
    """
    target, options = f"{user}@{reached}", ["-p", ssh_port]
    if not _is_of_this_machine(reached):
        target, options = f"{user}@{socket.gethostname()}", ["-J", f"{user}@{reached}:{ssh_port}"]
    return shlex.join(["ssh", "-L", f"{port}:{host}:{port}", *options, target])


def _is_of_this_machine(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def origin_of(text: str) -> str:
    """Return the origin, as browsers write it, of the address of a page.

    Raises:
        argparse.ArgumentTypeError: text is no such address; argparse adds the flag's name.
    """
    with contextlib.suppress(ValueError):
        url = urlsplit(text.strip())
        if url.scheme in USUAL_PORTS and url.hostname:
            name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            is_usual = url.port in (None, USUAL_PORTS[url.scheme])
            return f"{url.scheme}://{name}" + ("" if is_usual else f":{url.port}")
    raise argparse.ArgumentTypeError(
        f"must be an address such as https://example.org, not {text!r}"
    )


def is_address(host: str) -> bool:
    """Return whether host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return True if an address can be reached from this machine alone."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
