// params: elements, elements of a row. Beside: for each row of the result 1 + the number of the row that goes there.
fn element(i: u32) -> Bits {
    let number = second[i / params[1]];
    if number == 0u {
        return Bits();
    }
    return source_bits((number - 1u) * params[1] + i % params[1]);
}
