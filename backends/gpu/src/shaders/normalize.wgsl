// params: elements, elements after the axis, channels, then factor and offset of each.
fn element(i: u32) -> u32 {
    let channel = (i / params[1]) % params[2];
    let factor = params[3u + 2u * channel];
    let x = source_single(i);
    if is_nan(x) {
        return NAN;
    }
    if !is_finite(x) {
        return x ^ (factor & 0x80000000u);
    }
    return bitcast<u32>(bitcast<f32>(x) * bitcast<f32>(factor) + bitcast<f32>(params[4u + 2u * channel]));
}
