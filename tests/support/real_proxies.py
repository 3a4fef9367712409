"""nginx and haproxy from the system's packages, in front of a server; and Java's HTTP client.

Each is skipped with its reason where it is not installed; with ``SEGSERVE_TEST_NO_SKIP`` set, as in
CI, which installs them, it fails.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.own_environment import unavailable
from tests.support.waiting import wait_for

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream segserve {{ server 127.0.0.1:{server}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://segserve;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            {extra}
        }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend in
    bind 127.0.0.1:{port}
    default_backend out
backend out
    option forwardfor
    {extra}
    server one 127.0.0.1:{server} check inter 200ms rise 1 fall 1
frontend admin
    bind 127.0.0.1:{admin}
    stats enable
    stats uri /stats
"""


def find_program(name: str, package: str) -> str:
    """Returns the program's path; skips the test where there is none."""
    # Debian keeps servers out of a user's path.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        unavailable(f"no {name}: apt-get install {package}")
        raise AssertionError
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        if process.poll() is not None:
            _, errors = process.communicate()
            raise AssertionError(errors.decode("utf-8", "replace"))
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextmanager
def run_nginx(folder: Path, server: int, extra: str = "") -> Iterator[int]:
    """nginx in front of a port of this machine; its own port. ``extra`` goes into its location."""
    program, port = find_program("nginx", "nginx-light"), free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, server=server, port=port, extra=extra))
    with _running([program, "-p", str(folder), "-c", str(configuration)], port):
        yield port


@contextmanager
def run_haproxy(folder: Path, server: int, extra: str = "") -> Iterator[tuple[int, int]]:
    """haproxy likewise, which checks the server's health; its port, and that of its statistics."""
    program, port, admin = find_program("haproxy", "haproxy"), free_port(), free_port()
    configuration = folder / "haproxy.cfg"
    configuration.write_text(HAPROXY.format(server=server, port=port, admin=admin, extra=extra))
    with _running([program, "-db", "-f", str(configuration)], port):
        yield port, admin
