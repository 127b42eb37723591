fn element(i: u32) -> Bits {
    return source_bits(i);
}
