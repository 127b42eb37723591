fn between(low: f32, high: f32, weight: f32) -> f32 {
    // 2^127: of smaller ones the difference is finite.
    if max(bitcast<u32>(low) & 0x7fffffffu, bitcast<u32>(high) & 0x7fffffffu) >= 0x7f000000u {
        return low * (1.0 - weight) + high * weight;
    }
    return low + (high - low) * weight;
}

fn across(pixel: Pixel, row: u32) -> f32 {
    let low = bitcast<f32>(source_single(at(pixel, row, pixel.column.low)));
    let high = bitcast<f32>(source_single(at(pixel, row, pixel.column.high)));
    return between(low, high, pixel.column.weight);
}

fn is_usable(pixel: Pixel, row: u32) -> bool {
    return is_finite(source_single(at(pixel, row, pixel.column.low)))
        && is_finite(source_single(at(pixel, row, pixel.column.high)));
}

fn element(i: u32) -> u32 {
    let pixel = pixel(i);
    // Shaders need not know infinities.
    if !is_usable(pixel, pixel.row.low) || !is_usable(pixel, pixel.row.high) {
        return NAN;
    }
    let low = across(pixel, pixel.row.low);
    return bitcast<u32>(between(low, across(pixel, pixel.row.high), pixel.row.weight));
}
