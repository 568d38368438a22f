"""Refuse requests of other sites' pages: the viewer has no password.

A browser sends requests to this server for any page that a visitor has open. It then names the site
of that page in the header Origin. A site can also let its own name mean this machine's address (DNS
rebinding): then the header Host holds that name.
"""

import contextlib
import http
import socket
from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio import server as websocket_server
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from system.errors import UsageError
from web_viewer.address import is_address, is_loopback

Answer = Callable[[ServerConnection, Request], Response | None]


def own_names(host: str) -> frozenset[str]:
    """Return the names of this machine under which a server that listens at host is visited."""
    names = {host.casefold(), "localhost"}
    if not is_loopback(host):
        name = socket.gethostname().casefold()
        names |= {name, name.partition(".")[0], f"{name}.local", socket.getfqdn().casefold()}
    return frozenset(names)


def is_own(host: str | None, origin: str | None, names: Collection[str]) -> bool:
    """Return whether a request comes from a page of this server, or from no page.

    Args:
        host: the header Host, such as "localhost:8080".
        origin: the header Origin, such as "http://localhost:8080"; None where there is none.
        names: of this machine.
    """
    try:
        name = (urlsplit(f"//{host or ''}").hostname or "").rstrip(".")
        is_ours = name != "" and (name in names or is_address(name))
        return is_ours and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:
        return False


@contextlib.contextmanager
def guarded(names: Collection[str]) -> Iterator[None]:
    """Let the server that viser starts inside answer only requests for which is_own holds.

    viser starts it with websockets' serve, and passes on no check of its callers.

    Raises:
        UsageError: viser has not used that function.
    """
    serve, calls = websocket_server.serve, []

    def guarded_serve(*args: Any, process_request: Answer, **options: Any) -> Any:
        def answer(connection: ServerConnection, request: Request) -> Response | None:
            headers = request.headers
            if is_own(headers.get("Host"), headers.get("Origin"), names):
                response = process_request(connection, request)
                if response is not None:  # a file, not the connection of a page
                    response.headers["X-Frame-Options"] = "SAMEORIGIN"
                return response
            text = f"The viewer is visited as {', '.join(sorted(names))}, or by its address.\n"
            return connection.respond(http.HTTPStatus.FORBIDDEN, text)

        calls.append(answer)
        return serve(*args, process_request=answer, **options)

    websocket_server.serve = guarded_serve  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        websocket_server.serve = serve  # type: ignore[misc]
    if not calls:
        raise UsageError("this version of viser serves pages in another way, which can't be kept "
                         "from other sites; install viser 1.1.1")  # fmt: skip
