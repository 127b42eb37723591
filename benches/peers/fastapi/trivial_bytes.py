from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/score")
async def score(request: Request) -> Response:
    return Response(await request.body(), media_type="application/json")
