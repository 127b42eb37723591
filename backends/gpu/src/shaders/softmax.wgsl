// params: elements, extent, elements after the axis. Beside: the largest of each row and the sum of its exponentials.
fn element(i: u32) -> u32 {
    let row = i / params[2] / params[1] * params[2] + i % params[2];
    let largest = second[2u * row];
    if is_nan(largest) {
        return NAN;
    }
    let x = source_single(i);
    if !is_finite(x) {
        return 0u;
    }
    return bitcast<u32>(exponential(bitcast<f32>(x) - bitcast<f32>(largest)) / bitcast<f32>(second[2u * row + 1u]));
}
