// params: elements, extent, elements after the axis, k. Beside: where each element is along its row.
fn element(i: u32) -> Bits {
    let inner = params[2];
    return source_bits((i / inner / params[3] * params[1] + second[i]) * inner + i % inner);
}
