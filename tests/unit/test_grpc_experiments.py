import os
import subprocess
import sys


def test_grpc_knows_the_experiment_that_the_verifier_switches_off() -> None:
    """Once gRPC has dropped the choice it says so on stderr at every start, and the setting has to go."""
    serve = (
        "import asyncio, cloud_verifier, grpc\n"
        "async def main() -> None:\n"
        "    server = grpc.aio.server()\n"
        "    server.add_insecure_port('127.0.0.1:0')\n"
        "    await server.start()\n"
        "    await server.stop(0)\n"
        "asyncio.run(main())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    command = [sys.executable, "-c", serve]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert "experiment" not in done.stderr.lower()
