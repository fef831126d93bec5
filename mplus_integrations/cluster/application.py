"""The Ray Serve application: a front that lets requests in, and replicas of the model that answer them."""

# pyright: reportMissingImports=false
# Ray is checked where it is installed.

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from mplus import MPlus
from mplus_integrations.cluster.front import Front, ReplicaLostError, replica_header
from mplus_integrations.cluster.passing import Passed, answered_by
from mplus_integrations.cluster.routing import OwnerRouter
from mplus_integrations.server.app import create_app
from mplus_integrations.server.heap import share_heap
from mplus_integrations.server.logs import log, set_up_logs
from mplus_integrations.server.problems import Problem
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings, read_settings

NAME = "mplus"
HEALTH_SECONDS = 2.0
"""How often each replica is asked whether it lives; one that was killed is replaced after so long."""

QUIET = LoggingConfig(enable_access_log=False)
"""Requests are logged by the replicas, as those of ``mplus serve`` are."""

Loader = Callable[[], MPlus]


class Replica:
    """One copy of the model in a process of its own, with the whole application of ``mplus serve`` around it.

    Args:
        settings: Settings by name.
        load: Loads the model; None: the one that the settings name.
    """

    def __init__(self, settings: Mapping[str, Any], load: Loader | None) -> None:
        chosen = ServeSettings(**settings)
        share_heap()
        set_up_logs(chosen.log)
        self._service = Service(chosen, model=None if load is None else load())
        self._service.load()
        self._app = create_app(chosen, service=self._service)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._lifespan, self._entering, self._entered = AsyncExitStack(), asyncio.Lock(), False
        log("ready", model=chosen.model, replica=self._id)

    async def answer(self, passed: Passed) -> AsyncGenerator[Message]:
        """The messages of the application's answer to a request."""
        await self._enter()
        async with aclosing(answered_by(self._app, passed)) as messages:
            async for message in messages:
                is_start = message["type"] == "http.response.start"
                yield replica_header(message, self._id) if is_start else message

    async def _enter(self) -> None:
        async with self._entering:
            if not self._entered:
                await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
                self._entered = True

    def __del__(self) -> None:
        """Stop answering; Ray calls this once the requests inside are answered."""
        service: Service | None = getattr(self, "_service", None)
        if service is not None:
            service.close()


class Entrance:
    """The front as a deployment.

    Args:
        settings: Settings by name.
        replicas: The replicas.
    """

    def __init__(self, settings: Mapping[str, Any], replicas: DeploymentHandle) -> None:
        self._replicas: Any = replicas
        self._front = Front(ServeSettings(**settings), self._passed)

    async def __call__(self, request: Request) -> Response:
        """The answer to a request."""
        return await self._front.answer(request)

    async def _passed(self, memory: str | None, passed: Passed) -> AsyncGenerator[Message]:
        handle = self._replicas.options(stream=True, multiplexed_model_id=memory or "")
        messages: Any = handle.answer.remote(passed)
        try:
            async for message in messages:
                yield message
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLostError from error
        except BackPressureError as error:
            raise Problem(429, "queue_full", "Too many requests wait. Ask later.", retry_after=1) from error
        except RayTaskError as error:
            if isinstance(getattr(error, "cause", None), RayActorError):
                raise ReplicaLostError from error
            raise
        except GeneratorExit:
            messages.cancel()
            raise


def application(settings: ServeSettings, *, load: Loader | None = None) -> serve.Application:
    """The application of some settings, for ``serve.run``.

    Args:
        settings: How to serve.
        load: Loads the model in each replica; None: the one that the settings name.
    """
    given = settings.model_dump()
    growing = settings.max_replicas is not None and settings.max_replicas > settings.replicas
    deployed: Any = serve.deployment  # Ray's types know neither its options
    router: Any = OwnerRouter  # nor that a router may be given as a class
    replicas = deployed(Replica).options(
        name="replica",
        num_replicas=None if growing else settings.replicas,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.replicas,
            initial_replicas=settings.replicas,
            max_replicas=settings.max_replicas or settings.replicas,
            target_ongoing_requests=settings.max_running,
            upscale_delay_s=settings.grow_seconds,
            downscale_delay_s=settings.shrink_seconds,
        )
        if growing
        else None,
        max_ongoing_requests=settings.max_inside,
        request_router_config=RequestRouterConfig(request_router_class=router),
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": settings.replica_gpus},
        health_check_period_s=HEALTH_SECONDS,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=float(settings.shutdown_seconds),
        graceful_shutdown_wait_loop_s=0.5,
    )
    entrance = deployed(Entrance).options(
        name="entrance",
        num_replicas=1,
        max_ongoing_requests=settings.max_inside * max(settings.replicas, settings.max_replicas or 1),
        ray_actor_options={"num_cpus": min(0.1, settings.replica_cpus)},
        health_check_period_s=HEALTH_SECONDS,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=float(settings.shutdown_seconds),
    )
    return entrance.bind(given, replicas.bind(given, load))


def build(args: dict[str, Any]) -> serve.Application:
    """The application from settings by name, for ``serve run mplus_integrations.cluster:build replicas=3``.

    Each request needs an API key unless ``require_key`` says otherwise, since Ray's proxies may be reached by others.

    Args:
        args: Settings by name; ``ray=True`` need not be said.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    return application(read_settings({"require_key": True, **args, "ray": True}))
