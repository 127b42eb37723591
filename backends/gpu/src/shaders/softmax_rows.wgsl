// The largest of each row and the sum of its exponentials. The largest is NAN where the whole row is.
var<workgroup> keys: array<u32, 256>;
var<workgroup> sums: array<f32, 256>;

fn one_row(row: u32, lane: u32) {
    let start = first_of(row);
    let extent = params[1];
    let inner = params[2];
    var key = 0u;
    for (var place = lane; place < extent; place += 256u) {
        key = max(key, order(source_single(start + place * inner)));
    }
    keys[lane] = key;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if lane < half {
            keys[lane] = max(keys[lane], keys[lane + half]);
        }
        workgroupBarrier();
    }
    let largest = select(~keys[0], keys[0] ^ 0x80000000u, (keys[0] >> 31u) == 1u);
    let is_hopeless = !is_finite(largest);
    var sum = 0.0;
    if !is_hopeless {
        for (var place = lane; place < extent; place += 256u) {
            let x = source_single(start + place * inner);
            if is_finite(x) {
                sum += exponential(bitcast<f32>(x) - bitcast<f32>(largest));
            }
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if lane < half {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        result[2u * row] = select(largest, NAN, is_hopeless);
        result[2u * row + 1u] = bitcast<u32>(sums[0]);
    }
}
