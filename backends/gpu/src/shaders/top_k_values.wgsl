// Beside: where the largest of each row are.
fn element(i: u32) -> Bits {
    let inner = params[2];
    return source_bits((i / inner / params[3] * params[1] + second[place_in(i)]) * inner + i % inner);
}
