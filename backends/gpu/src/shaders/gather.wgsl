// params: elements, elements of a row, rows, the step's number. Beside: indices.
fn element(i: u32) -> Bits {
    let index = second_index(i / params[1]);
    if index >= params[2] {
        atomicMax(&status, params[3]);
        return Bits();
    }
    return source_bits(index * params[1] + i % params[1]);
}
