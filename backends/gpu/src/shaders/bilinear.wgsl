fn across(pixel: Pixel, row: u32) -> f32 {
    let low = bitcast<f32>(source_single(at(pixel, row, pixel.column.low)));
    let high = bitcast<f32>(source_single(at(pixel, row, pixel.column.high)));
    return low + (high - low) * pixel.column.weight;
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
    return bitcast<u32>(low + (across(pixel, pixel.row.high) - low) * pixel.row.weight);
}
