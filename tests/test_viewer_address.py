"""The viewer's port, the address that it prints, and the pages that it refuses."""

import contextlib
import http.client
import socket

import pytest
from viewer_visits import POSES, shared_of

import viewer
from system.errors import UsageError
from web_viewer import address, origins
from web_viewer.page import PoseMap, Server

NAME = socket.gethostname()
HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="}  # fmt: skip


@pytest.mark.parametrize(
    ("host", "is_loopback", "shown"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("::1", True, "[::1]"),
        ("localhost", True, "localhost"),
        ("0.0.0.0", False, NAME),
        ("::", False, NAME),
        ("192.168.0.9", False, "192.168.0.9"),
        ("example.org", False, "example.org"),
    ],
)
def test_the_address_is_one_that_a_visitor_can_type(host, is_loopback, shown, capsys):
    address.announce(host, 81, {})
    said = capsys.readouterr()
    assert ("no password" in said.err) != is_loopback
    assert said.out == f"http://{shown}:81  (Ctrl-C ends it)\n"


@pytest.mark.parametrize(
    ("host", "connection", "command"),
    [
        ("127.0.0.1", "192.0.2.7 50000 127.0.0.1 22",
         "ssh -L 81:127.0.0.1:81 -p 22 ann@127.0.0.1"),
        ("localhost", "2001:db8::7 50000 ::1 2222", "ssh -L 81:localhost:81 -p 2222 ann@::1"),
        ("::1", "192.0.2.7 50000 127.0.0.1 22", "ssh -L '81:[::1]:81' -p 22 ann@127.0.0.1"),
        # A job on a cluster: ssh has reached another machine (an address for documentation).
        ("127.0.0.1", "192.0.2.7 50000 192.0.2.1 22",
         f"ssh -L 81:127.0.0.1:81 -J ann@192.0.2.1:22 ann@{NAME}"),
        ("0.0.0.0", "192.0.2.7 50000 192.0.2.1 22", None),
        ("127.0.0.1", "damaged", None),
    ],
)  # fmt: skip
def test_through_ssh_the_tunnel_is_printed(host, connection, command, capsys):
    address.announce(host, 81, {"SSH_CONNECTION": connection, "USER": "ann"})
    said = capsys.readouterr().out.splitlines()
    assert said[1:-1] == ([] if command is None else [f"    {command}", "and open there"])


@pytest.fixture
def taken(monkeypatch):
    """Yield a port that is in use, the first of the default ports."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(address, "DEFAULT_PORTS", range(port, port + 20))
        yield port


def test_the_default_port_is_the_first_that_is_free(taken, capsys):
    port = address.free_port("127.0.0.1", None)
    assert taken < port < taken + 20
    assert capsys.readouterr().err == f"port {taken} is taken; using port {port}\n"
    address.DEFAULT_PORTS = range(port, port + 1)
    assert address.free_port("127.0.0.1", None) == port
    assert capsys.readouterr().err == ""
    assert address.free_port("127.0.0.1", 0) == 0


@pytest.mark.parametrize("has_typed_it", [True, False])
def test_no_free_port_is_one_line(has_typed_it, taken, tiny_run, tmp_path):
    texts = [tiny_run / "generator.pth", "--output_dir", tmp_path / "x"]
    texts += ["--port", taken] if has_typed_it else []
    address.DEFAULT_PORTS = [taken]
    where = f"--port {taken}" if has_typed_it else "--host 127.0.0.1"
    with pytest.raises(UsageError, match=f"{where}: no page can be served there"):
        viewer.main([str(text) for text in texts])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("host", "origin", "is_own"),
    [
        ("localhost:8080", "http://localhost:8080", True),
        ("LOCALHOST:9000", "http://LOCALHOST:9000", True),  # the other end of ssh -L
        ("127.0.0.1:8080", None, True),  # the page itself, or no browser
        ("[::1]:8080", "http://[::1]:8080", True),
        ("gpu-box", "https://gpu-box", True),
        ("192.0.2.9:8080", "http://192.0.2.9:8080", True),
        ("localhost:8080", "http://localhost:3000", False),  # another program's page
        ("localhost:8080", "https://example.org", False),
        ("localhost:8080", "null", False),  # a file, or a frame without rights
        ("example.org:8080", "http://example.org:8080", False),  # its name means this machine
        ("example.org:8080", None, False),
        ("localhost.example.org", None, False),
        ("127.0.0.1.example.org", None, False),
        ("", None, False),
        (None, None, False),
        ("[::1", None, False),
    ],
)
def test_which_requests_are_of_our_own_pages(host, origin, is_own):
    assert origins.is_own(host, origin, {"localhost", "gpu-box"}) == is_own


def test_a_network_server_knows_this_machines_name():
    assert origins.own_names("127.0.0.1") == {"127.0.0.1", "localhost"}
    assert origins.own_names("0.0.0.0") >= {NAME.casefold(), "localhost"}


def status_of(port, headers):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request("GET", "/", headers=headers)
    answer = link.getresponse()
    frames = answer.getheader("X-Frame-Options")
    link.close()
    return answer.status, frames


def test_pages_of_other_sites_are_refused(tiny_run, tmp_path):
    server = Server(shared_of(tiny_run, tmp_path), PoseMap(POSES), "127.0.0.1", 0)
    try:
        own = f"127.0.0.1:{server.port}"
        assert status_of(server.port, {}) == (200, "SAMEORIGIN")
        assert status_of(server.port, {**HANDSHAKE, "Origin": f"http://{own}"})[0] == 101
        for extra in (HANDSHAKE, {}):
            for other in ({"Origin": "http://example.org"}, {"Host": "example.org"},
                          {"Host": "example.org", "Origin": "http://example.org"}):  # fmt: skip
                assert status_of(server.port, {**extra, **other})[0] == 403
    finally:
        server.stop()


def test_a_viser_that_can_t_be_guarded_is_refused():
    with pytest.raises(UsageError, match="install viser"), origins.guarded({"localhost"}):
        pass
