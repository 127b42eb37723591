// params: elements, rows, columns of each matrix before.
fn element(i: u32) -> Bits {
    let row = i % params[1];
    let column = (i / params[1]) % params[2];
    let matrix = i / params[1] / params[2];
    return source_bits((matrix * params[1] + row) * params[2] + column);
}
