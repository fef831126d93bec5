"""``mplus serve --ray``: the Ray Serve application on this machine alone, until it is told to stop."""

# pyright: reportMissingImports=false
# Ray is checked where it is installed.

import os
import signal
import socket
import threading
from contextlib import closing

import ray
from ray import serve

from mplus_integrations.cluster.application import NAME, Loader, application
from mplus_integrations.server.logs import log, set_up_logs
from mplus_integrations.server.settings import ServeSettings

OBJECT_BYTES = 2**29
"""Host memory for requests and answers that are too large for a message between processes."""
SURROUNDINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""How Ray runs here unless the environment says otherwise: it tells nobody, and replicas are as eager as others."""


def run(settings: ServeSettings, *, load: Loader | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests inside are answered first.

    Args:
        settings: How to serve.
        load: Loads the model in each replica; None: the one that the settings name.

    Raises:
        OSError: The port is taken.
        RuntimeError: The model could not be loaded, or the store not be opened.
    """
    set_up_logs(settings.log)
    told = threading.Event()
    start(settings, load=load)
    try:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: told.set())
        told.wait()
    finally:
        log("stopping")
        end()


def start(settings: ServeSettings, *, load: Loader | None = None) -> str:
    """Start Ray on this machine alone, and the application; returns its address once it answers.

    Args:
        settings: How to serve.
        load: Loads the model in each replica; None: the one that the settings name.

    Raises:
        OSError: The port is taken.
        RuntimeError: The model could not be loaded, or the store not be opened.
    """
    port = free_port(settings.host, settings.port)
    address = f"http://{settings.host}:{port}"
    log("starting", address=address, needs_key=settings.needs_key, replicas=settings.replicas)
    for name, value in SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_BYTES, configure_logging=False)
    try:
        options = {"host": settings.host, "port": port, "request_timeout_s": None}
        serve.start(proxy_location="HeadOnly", http_options=options)
        serve.run(application(settings, load=load), name=NAME, route_prefix="/")
    except BaseException:
        end()
        raise
    log("ready", address=address)
    return address


def end() -> None:
    """End the application and Ray; requests inside are answered first."""
    serve.shutdown()
    ray.shutdown()


def free_port(host: str, port: int) -> int:
    """A port on which a server can listen: the one given, or a free one for 0.

    Raises:
        OSError: It is taken.
    """
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            message = f"{host}:{port}: cannot listen there; it may be taken. Choose another --port."
            raise OSError(error.errno, message) from error
        return listener.getsockname()[1]
