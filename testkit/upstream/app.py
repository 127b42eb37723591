"""A model server as people write them, with FastAPI on uvicorn, on a free port of this machine, which it prints; with an argument also on
a Unix socket of that path. It ends when its standard input does, however the process that holds it ends.

What is below /control is for the test alone: what it has seen, and what it is to wait for."""

import asyncio
import collections
import hashlib
import os
import socket
import sys
import threading

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

app = FastAPI()
gates = collections.defaultdict(asyncio.Event)
seen = {"requests": [], "disconnects": [], "running": 0, "most": 0, "probes": 0, "hashed": 0}
answers = {"ready": 200, "live": 200}


class Counting:
    """Counts what is at work, without taking anything of requests and answers."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if path.startswith(("/ready", "/live")):
            seen["probes"] += 1
        if scope["type"] != "http" or path.startswith(("/control", "/ready", "/live")):
            return await self.inner(scope, receive, send)
        seen["requests"].append(path)
        seen["running"] += 1
        seen["most"] = max(seen["most"], seen["running"])
        try:
            return await self.inner(scope, receive, send)
        finally:
            seen["running"] -= 1


async def told(request: Request, body: bytes):
    return {
        "method": request.method,
        "path": request.url.path,
        "query": request.url.query,
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in request.scope["headers"]],
        "body": body.decode("utf-8", "replace"),
    }


@app.api_route("/score", methods=["GET", "POST"])
@app.api_route("/app/echo{rest:path}", methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def echo(request: Request):
    response = JSONResponse(await told(request, await request.body()))
    response.headers["x-own"] = "yes"
    response.headers["x-request-id"] = "the app's own"
    response.headers["connection"] = "x-hop"
    response.headers["x-hop"] = "1"
    response.headers.append("set-cookie", "a=1")
    response.headers.append("set-cookie", "b=2")
    return response


@app.api_route("/app/status/{code}", methods=["GET", "POST", "HEAD"])
async def status(code: int):
    # These have none: what is sent all the same would be the next answer's beginning.
    body = None if code in (204, 304) else f"status {code}"
    return Response(body, status_code=code, media_type="text/plain", headers={"retry-after": "7"})


@app.api_route("/app/wait/{gate}", methods=["GET", "POST"])
async def wait(gate: str, request: Request):
    """Answers when the gate is opened; notices when its caller leaves."""
    try:
        await request.body()
    except ClientDisconnect:
        seen["disconnects"].append(gate)
        raise

    async def left():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone, opened = asyncio.ensure_future(left()), asyncio.ensure_future(gates[gate].wait())
    await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
    if not opened.done():
        seen["disconnects"].append(gate)
    gone.cancel()
    opened.cancel()
    return {"gate": gate}


@app.api_route("/app/events/{gate}", methods=["GET", "POST"])
async def events(gate: str):
    """Three events, each once its gate is open."""

    async def pieces():
        for number in range(3):
            await gates[f"{gate}{number}"].wait()
            yield f"data: {number}\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


@app.api_route("/app/bytes/{length}", methods=["GET", "POST"])
async def many(length: int):
    """So many bytes, without a word of how many; what has been produced is kept count of."""

    async def pieces():
        left = length
        try:
            while left > 0:
                piece = min(left, 1 << 16)
                left -= piece
                seen["produced"] = length - left
                yield b"x" * piece
                # Sending to one who has left waits for nothing: here it is noticed.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen["disconnects"].append("bytes")
            raise

    return StreamingResponse(pieces(), media_type="application/octet-stream")


@app.api_route("/app/length/{length}", methods=["GET", "POST"])
async def length(length: int):
    """So many bytes, which is said before."""
    return Response(b"x" * length, media_type="application/octet-stream")


@app.api_route("/app/hash", methods=["GET", "POST"])
async def hashed(request: Request):
    """Reads a body as it comes."""
    digest, length = hashlib.sha256(), 0
    async for chunk in request.stream():
        digest.update(chunk)
        length += len(chunk)
        seen["taken"] = length
    seen["hashed"] += 1
    headers = dict(request.headers)
    framing = "length" if "content-length" in headers else headers.get("transfer-encoding")
    return {"sha256": digest.hexdigest(), "length": length, "framing": framing}


@app.post("/app/early")
async def early():
    """Answers without having read anything."""
    return JSONResponse({"error": "not today"}, status_code=413)


@app.get("/app/files")
async def files(root: str):
    return {"files": sorted(os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names)}


@app.get("/ready")
async def ready():
    return Response(status_code=answers["ready"])


@app.get("/live")
async def live():
    return Response(status_code=answers["live"])


@app.get("/control/seen")
async def control_seen():
    return seen


@app.post("/control/open/{gate}")
async def control_open(gate: str):
    gates[gate].set()


@app.post("/control/answer/{probe}/{code}")
async def control_answer(probe: str, code: int):
    answers[probe] = code


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("http://%s:%d" % sockets[0].getsockname(), flush=True)


def main():
    sockets = [socket.create_server(("127.0.0.1", 0))]
    for path in sys.argv[1:]:
        if os.path.exists(path):
            os.unlink(path)
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(path)
        sockets[-1].listen(64)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    Server(uvicorn.Config(Counting(app), log_level="warning", timeout_keep_alive=60)).run(sockets)


main()
