from typing import Annotated, Any

from fastapi import Body, FastAPI

app = FastAPI()


@app.post("/score")
async def score(data: Annotated[Any, Body()]) -> Any:
    return data
