// params: elements, elements of a row, rows, where its check is. Beside: indices.
fn element(i: u32) -> Bits {
    let index = second_index(i / params[1]);
    if index >= params[2] {
        // The first one that is none is the largest here.
        atomicMax(&status[params[3]], ~(i / params[1]));
        return Bits();
    }
    return source_bits(index * params[1] + i % params[1]);
}
