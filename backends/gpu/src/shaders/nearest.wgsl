fn element(i: u32) -> Bits {
    let pixel = pixel(i);
    return source_bits(at(pixel, pixel.row.low, pixel.column.low));
}
