"""Ways to a verifier that break, and verifiers that follow a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from netlab.link import Link, LinkSettings
from tests.service.raw import DEADLINE_S

Script = Callable[[pb.Open, Iterator[pb.GenerateRequest], grpc.ServicerContext], Iterator[pb.GenerateResponse]]


class _LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function or a coroutine function there, and wait."""

        async def call() -> Any:
            result = work(*arguments)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(DEADLINE_S)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


class Road(_LoopThread):
    """netlab's link to a verifier, for tests that are not asynchronous."""

    def __init__(self, address: str, settings: LinkSettings | None = None) -> None:
        super().__init__()
        self._link = Link(("127.0.0.1", port_of(address)), settings)

    def __enter__(self) -> Self:
        self.do(self._link.start)
        self.address = f"127.0.0.1:{self._link.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._link.stop)
        self.end()

    def cut(self) -> None:
        self.do(self._link.cut)

    def refuse(self, refusing: bool) -> None:
        self.do(self._link.refuse, refusing)

    def pause(self) -> None:
        self.do(self._link.pause)

    def resume(self) -> None:
        self.do(self._link.resume)

    @property
    def connections(self) -> int:
        """Accepted so far."""
        return int(self.do(self._link.counters).connections)

    @property
    def refused(self) -> int:
        """Turned away so far."""
        return int(self.do(self._link.counters).refused)


class Tarpit(_LoopThread):
    """A way on which connections can die without a sign, as behind a NAT that forgot them; new ones work."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._target = port_of(address)
        self._living: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    def __enter__(self) -> Self:
        self._server: asyncio.Server = self.do(asyncio.start_server, self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._end)
        self.end()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def bury(self) -> None:
        """From now on nothing more travels on the present connections."""

        def bury() -> None:
            for alive in self._living:
                alive.clear()

        self.do(bury)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        alive = asyncio.Event()
        alive.set()
        self._living.add(alive)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink, alive)))

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, alive: asyncio.Event) -> None:
        try:
            while data := await source.read(65536):
                await alive.wait()
                sink.write(data)
            await alive.wait()
        except ConnectionError:
            pass
        finally:
            sink.close()


class ScriptedVerifier(pb_grpc.VerifierServiceServicer):
    """Plays one script per stream; the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.opens: list[pb.Open] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        pb_grpc.add_VerifierServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def GetModelInfo(self, request: Any, context: Any) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse()

    def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse()

    def GetVocabulary(self, request: Any, context: Any) -> Iterator[pb.GetVocabularyResponse]:
        return iter(())

    def Generate(self, requests: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        opened = next(requests).open
        script = self._scripts[min(len(self.opens), len(self._scripts) - 1)]
        self.opens.append(opened)
        yield from script(opened, requests, context)


def ending(code: grpc.StatusCode, reason: str = "", details: bytes | None = None) -> Script:
    """A stream that ends with a status at once."""

    def script(_open: pb.Open, _requests: Any, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        if reason:
            info = any_pb2.Any()
            info.Pack(error_details_pb2.ErrorInfo(reason=reason))
            status = status_pb2.Status(code=code.value[0], message="by script", details=[info])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        elif details is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(code, "by script")

    return script


def listening(_open: pb.Open, requests: Iterator[pb.GenerateRequest], _context: Any) -> Iterator[pb.GenerateResponse]:
    """A stream on which the verifier says nothing more."""
    for _ in requests:
        pass
    return iter(())


def saying(*responses: pb.GenerateResponse, then: Script | None = None) -> Script:
    """A stream that says so much and then ends well, or as another script does."""

    def script(opened: pb.Open, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        yield from responses
        if then is not None:
            yield from then(opened, requests, context)

    return script
