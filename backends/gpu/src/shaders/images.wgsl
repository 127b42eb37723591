// params: elements, channels, height and width before, height and width after, then for each row and for each column low, high, weight.
struct Tap {
    low: u32,
    high: u32,
    weight: f32,
}

struct Pixel {
    // The first element of the image.
    image: u32,
    channel: u32,
    row: Tap,
    column: Tap,
}

fn tap(number: u32) -> Tap {
    let at = 6u + 3u * number;
    return Tap(params[at], params[at + 1u], bitcast<f32>(params[at + 2u]));
}

fn pixel(i: u32) -> Pixel {
    let place = i / params[1];
    let column = place % params[5];
    let row = (place / params[5]) % params[4];
    let image = place / params[5] / params[4];
    return Pixel(image * params[2] * params[3] * params[1], i % params[1], tap(row), tap(params[4] + column));
}

fn at(pixel: Pixel, row: u32, column: u32) -> u32 {
    return pixel.image + (row * params[3] + column) * params[1] + pixel.channel;
}
