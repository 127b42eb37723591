"""Pictures in, JSON or pictures out."""

import io

from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
from PIL import Image, ImageStat, UnidentifiedImageError


def init():
    """Bounds what a small file may unpack to."""
    Image.MAX_IMAGE_PIXELS = 20_000_000


@rawhttp
def run(request: AMLRequest):
    """Answers by method: GET with a greeting, POST with what became of the picture."""
    if request.method == "GET":
        return AMLResponse("send a picture", 200, {"Content-Type": "text/plain"})
    if request.method != "POST":
        return AMLResponse("bad request", 405)
    file = request.files.get("image")
    data = file.read() if file else request.get_data()
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        return AMLResponse({"error": str(error)}, 400, json_str=True)
    size = request.args.get("thumbnail", type=int)
    if size is None:
        mean = [round(value, 1) for value in ImageStat.Stat(image).mean]
        return {"width": image.width, "height": image.height, "mean": mean}
    image.thumbnail((size, size))
    out = io.BytesIO()
    image.save(out, "PNG")
    return AMLResponse(out.getvalue(), 200, {"Content-Type": "image/png", "Cache-Control": "no-store"})
