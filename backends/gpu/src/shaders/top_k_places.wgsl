// Where element i of the result is along its row. params: elements, extent, elements after the axis, k, the power of two from k on.
fn place_in(i: u32) -> u32 {
    let inner = params[2];
    let row = i / inner / params[3] * inner + i % inner;
    return row * params[4] + i / inner % params[3];
}
