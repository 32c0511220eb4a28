"""grpc.aio: its own C core with threads of its own, which wakes the loop through a socket."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.real import peers

grpc = peers.package("grpc")
aio = peers.package("grpc.aio")

# Messages are plain bytes: what is tested is the transport, so no generated code is needed.
SERVICE = "tide.Echo"


class Echo(grpc.GenericRpcHandler):
    def __init__(self):
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()

    def service(self, details):
        match details.method:
            case "/tide.Echo/Unary":
                return grpc.unary_unary_rpc_method_handler(self.unary)
            case "/tide.Echo/Count":
                return grpc.unary_stream_rpc_method_handler(self.count)
            case "/tide.Echo/Sum":
                return grpc.stream_unary_rpc_method_handler(self.sum)
            case "/tide.Echo/Both":
                return grpc.stream_stream_rpc_method_handler(self.both)
            case "/tide.Echo/Fail":
                return grpc.unary_unary_rpc_method_handler(self.fail)
            case "/tide.Echo/Stay":
                return grpc.unary_unary_rpc_method_handler(self.stay)
        return None

    async def unary(self, request, context):
        return request.upper()

    async def count(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    async def sum(self, requests, context):
        return str(sum([int(request) async for request in requests])).encode()

    async def both(self, requests, context):
        async for request in requests:
            yield request[::-1]

    async def fail(self, request, context):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no")

    async def stay(self, request, context):
        self.started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.cancelled.set()


@contextlib.asynccontextmanager
async def connected():
    echo = Echo()
    server = aio.server()
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, echo
    finally:
        await server.stop(None)


def test_unary_calls(run):
    async def main():
        async with connected() as (channel, _):
            call = channel.unary_unary("/tide.Echo/Unary")
            messages = [f"message {number} ".encode() * 100 for number in range(200)]
            assert await asyncio.gather(*map(call, messages)) == [message.upper() for message in messages]
            large = b"l" * 3_000_000
            assert await call(large) == large.upper()

    run(main())


def test_streams_in_each_direction(run):
    async def numbers():
        for number in range(500):
            yield str(number).encode()

    async def main():
        async with connected() as (channel, _):
            received = [message async for message in channel.unary_stream("/tide.Echo/Count")(b"500")]
            assert received == [str(number).encode() for number in range(500)]
            assert await channel.stream_unary("/tide.Echo/Sum")(numbers()) == str(sum(range(500))).encode()
            call = channel.stream_stream("/tide.Echo/Both")()
            for number in range(200):
                await call.write(f"{number} there".encode())
                assert await call.read() == f"{number} there".encode()[::-1]
            await call.done_writing()
            assert await call.read() is aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    run(main())


def test_errors_have_their_status(run):
    async def main():
        async with connected() as (channel, _):
            with pytest.raises(aio.AioRpcError) as failed:
                await channel.unary_unary("/tide.Echo/Fail")(b"")
            assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert failed.value.details() == "no"
            with pytest.raises(aio.AioRpcError) as failed:
                await channel.unary_unary("/tide.Echo/Nothing")(b"")
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(main())


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_that_is_given_up_ends_on_the_server(run, how):
    async def main():
        async with connected() as (channel, echo):
            call = channel.unary_unary("/tide.Echo/Stay")(b"", timeout=0.05 if how == "deadline" else None)
            if how == "cancel":
                await echo.started.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                with pytest.raises(aio.AioRpcError) as failed:
                    await call
                assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if echo.started.is_set():
                await echo.cancelled.wait()

    run(main())
