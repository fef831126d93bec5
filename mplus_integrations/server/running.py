"""Runs the server until it is told to stop."""

import threading
from typing import Any

import uvicorn

from mplus import MPlus
from mplus_integrations.server.app import create_app
from mplus_integrations.server.heap import share_heap
from mplus_integrations.server.logs import log, set_up_logs
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings

LAST_SECONDS = 5
"""How long answers that are cut off at the end have to say so, before their connections are closed."""


class Server(uvicorn.Server):
    """A web server that is no longer ready as soon as it is told to stop, and whose answers then end or are cut off.

    Args:
        service: The service.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(settings, service=service),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                timeout_graceful_shutdown=settings.shutdown_seconds + LAST_SECONDS,
            )
        )
        self._service = service
        self._cut = threading.Timer(settings.shutdown_seconds, service.close)
        self._cut.daemon = True
        service.on_failure = self._fail

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take no new requests; those inside are answered for as long as the settings say, then end with an error."""
        if not self._service.stopping:
            self._service.stopping = True
            self._cut.start()
        super().handle_exit(sig, frame)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Serve until told to stop."""
        try:
            super().run(*args, **kwargs)
        finally:
            self._cut.cancel()

    def _fail(self) -> None:
        self.should_exit = True


def run(settings: ServeSettings, *, model: MPlus | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: How to serve.
        model: A loaded model; None: the one that the settings name.

    Raises:
        Exception: The model could not be loaded, or the store not be opened.
        OSError: The port is taken.
    """
    share_heap()
    set_up_logs(settings.log)
    service = Service(settings, model=model)
    server = Server(service)
    log("starting", address=f"http://{settings.host}:{settings.port}", needs_key=settings.needs_key)
    server.run()
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise OSError(f"{settings.host}:{settings.port}: cannot listen there; it may be taken. Choose another --port.")
