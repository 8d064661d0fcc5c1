"""A verifier as a process: engine, scheduler and service behind one gRPC port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from cloud_verifier.engines.self_scheduling import Engine
from cloud_verifier.observability.interceptor import CallInterceptor, Watcher
from cloud_verifier.scheduling.scheduler import Scheduler, SchedulerSettings
from cloud_verifier.security.authentication import Authentication
from cloud_verifier.serving.address import Address, ServerError
from cloud_verifier.serving.draining import Draining
from cloud_verifier.serving.model_router import ModelRouter
from cloud_verifier.serving.open_request import Served
from cloud_verifier.serving.service import ServiceSettings, VerifierService
from cloud_verifier.supervision import Supervisor

if TYPE_CHECKING:
    from cloud_verifier.observability.metrics import Metrics

MAX_MESSAGE_BYTES = 1 << 20
# For how long Python lets a thread compute that another waits for. By its default of 5 ms an engine's next step begins
# only once all words of the last one have been written.
SWITCH_INTERVAL_S = 0.0005
PLACES_LOOKED_AT_EVERY_S = 0.5
STEPS_WATCHED_EVERY_S = 1.0
KEYS_READ_EVERY_S = 1.0  # besides at every call: so soon does an answer end whose key was taken away
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VerifierService"].full_name

# Devices ping an idle stream to keep NATs open; a server that is not told to permit it answers GOAWAY too_many_pings.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", 4096),
]


class Running(NamedTuple):
    """A verifier that serves. service, scheduler: of the first model."""

    port: int
    service: VerifierService
    scheduler: Scheduler
    draining: Draining
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def running(
    engine: Engine,
    served: Served,
    address: Address,
    scheduler_settings: SchedulerSettings | None = None,
    service_settings: ServiceSettings | None = None,
    authentication: Authentication | None = None,
    watchers: Sequence[Watcher] = (),
    metrics: Metrics | None = None,
    others: Sequence[tuple[Engine, Served]] = (),
) -> AsyncIterator[Running]:
    """A verifier that serves while the context is open. others: more models, that devices have to ask for by name.

    On leaving it says NOT_SERVING, gives open streams a second to end, and stops the engine's thread. If its background
    work fails, or a step of an engine hangs, it says NOT_SERVING at once and hands all sessions back; see
    `Running.supervisor`. Raises ServerError.
    """
    schedulers = [Scheduler(one, scheduler_settings) for one in (engine, *(one for one, _ in others))]
    models = [served, *(one for _, one in others)]
    services = {
        model.name: VerifierService(model, scheduler, service_settings)
        for model, scheduler in zip(models, schedulers, strict=True)
    }
    service = services[served.name]
    front = ModelRouter(services) if others else service
    server = grpc.aio.server(
        interceptors=[CallInterceptor(watchers), authentication or Authentication()],
        options=[*CHANNEL_OPTIONS, ("grpc.so_reuseport", int(address.reuse_port))],
    )
    if metrics is not None:
        for scheduler, (name, one) in zip(schedulers, services.items(), strict=True):
            metrics.watch(name, one, scheduler)
    pb_grpc.add_VerifierServiceServicer_to_server(front, server)
    liveness = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(liveness, server)
    reflection.enable_server_reflection([SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = address.add_to(server)
    supervisor = Supervisor()
    for scheduler, name in zip(schedulers, services, strict=True):
        supervisor.start(f"the scheduler of {name}", scheduler.run())
    if authentication is not None and authentication.has_keys:
        supervisor.start("the watch over removed keys", _expel(authentication, services.values()))
    supervisor.start("the watch over steps", _watch_steps(dict(zip(services, schedulers, strict=True)), supervisor))
    supervisor.start("the watch over silent devices", _reclaim(services.values()))
    if metrics is not None and metrics.thread is not None:
        supervisor.watch("the server of metrics", metrics.thread)
    await server.start()
    for name in ("", SERVICE_NAME, *(f"{SERVICE_NAME}/{name}" for name in services)):
        await liveness.set(name, health_pb2.HealthCheckResponse.SERVING)
    draining = Draining(server, liveness, front, shares_port=address.reuse_port)
    leaving = asyncio.create_task(_leave_on_failure(supervisor, draining))
    try:
        yield Running(port, service, schedulers[0], draining, supervisor)
    finally:
        await liveness.enter_graceful_shutdown()
        await server.stop(grace=1.0)
        leaving.cancel()
        await supervisor.stop()
        for one in services.values():
            one.close()


async def _reclaim(services: Collection[VerifierService]) -> None:
    """Give places of silent devices to those that wait; cancel to stop."""
    while True:
        await asyncio.sleep(PLACES_LOOKED_AT_EVERY_S)
        for service in services:
            service.reclaim()


async def _watch_steps(schedulers: Mapping[str, Scheduler], supervisor: Supervisor) -> None:
    """Fail when an engine hangs; cancel to stop. schedulers: by model."""
    while True:
        await asyncio.sleep(STEPS_WATCHED_EVERY_S)
        for name, scheduler in schedulers.items():
            if trouble := scheduler.trouble:
                supervisor.fail(f"the engine of {name} hangs: {trouble}")
                return


async def _leave_on_failure(supervisor: Supervisor, draining: Draining) -> None:
    await supervisor.failed.wait()
    await draining.drain(0.0)


async def _expel(authentication: Authentication, services: Collection[VerifierService]) -> None:
    """End sessions whose key was taken away; cancel to stop."""
    while True:
        await asyncio.sleep(KEYS_READ_EVERY_S)
        objection = authentication.objections()
        for service in services:
            service.end_sessions(objection)


async def serve(
    engine: Engine,
    served: Served,
    address: Address,
    announce: Callable[[int], None],
    scheduler_settings: SchedulerSettings | None = None,
    service_settings: ServiceSettings | None = None,
    authentication: Authentication | None = None,
    drain_timeout_s: float = 30.0,
    watchers: Sequence[Watcher] = (),
    metrics: Metrics | None = None,
    others: Sequence[tuple[Engine, Served]] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends that at once.

    `announce` is called with the port once requests are welcome. Raises ServerError, also when the verifier's
    background work fails: all sessions are handed back then, and the process should end with an error, to be started
    again.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with running(
        engine, served, address, scheduler_settings, service_settings, authentication, watchers, metrics, others
    ) as verifier:
        stop = asyncio.Event()

        def signalled() -> None:
            if stop.is_set():
                verifier.draining.hurry.set()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, signalled)
        announce(verifier.port)
        supervisor = verifier.supervisor
        told, failed = asyncio.create_task(stop.wait()), asyncio.create_task(supervisor.failed.wait())
        await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        await verifier.draining.drain(0.0 if supervisor.failed.is_set() else drain_timeout_s)
        failed.cancel()
        if supervisor.failed.is_set():
            raise ServerError(f"{supervisor.failure}; the sessions were handed back; start this verifier again")
