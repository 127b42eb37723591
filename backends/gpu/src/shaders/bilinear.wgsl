fn value(pixel: Pixel, row: u32, column: u32) -> f32 {
    return bitcast<f32>(source_single(at(pixel, row, column)));
}

fn across(pixel: Pixel, row: u32) -> f32 {
    let low = value(pixel, row, pixel.column.low);
    return low + (value(pixel, row, pixel.column.high) - low) * pixel.column.weight;
}

fn element(i: u32) -> u32 {
    let pixel = pixel(i);
    let low = across(pixel, pixel.row.low);
    return bitcast<u32>(low + (across(pixel, pixel.row.high) - low) * pixel.row.weight);
}
