import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.post("/score")
async def score() -> StreamingResponse:
    return StreamingResponse(items())


async def items() -> AsyncIterator[str]:
    yield f"{time.clock_gettime_ns(time.CLOCK_MONOTONIC)}\n"
    await asyncio.sleep(0.01)
    yield "end\n"
