// Where the k largest of each row are, the largest first. Elements go by two words, their order and then the complement of their place, so that no
// two are alike. The k-th is found byte by byte, by counting how many have which; those from it on are collected and sorted.
// params: rows, extent, elements after the axis, k, the power of two from k on, the first row.
const NONE = 0xffffffffu;

var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> sums: array<u32, 256>;
// The byte of the k-th, how many are wanted of those that have it, and how many have it.
var<workgroup> chosen: vec3<u32>;

fn rank(start: u32, place: u32) -> vec2<u32> {
    return vec2<u32>(source_order(start + place * params[2]), ~place);
}

fn is_larger(one: vec2<u32>, other: vec2<u32>) -> bool {
    return one.x > other.x || (one.x == other.x && one.y > other.y);
}

fn comes_first(start: u32, one: u32, other: u32) -> bool {
    if one == NONE || other == NONE {
        return one != NONE;
    }
    return is_larger(rank(start, one), rank(start, other));
}

fn one_row(number: u32, lane: u32) {
    let row = params[5] + number;
    let start = first_of(row);
    let extent = params[1];
    let k = params[3];
    let padded = params[4];
    let base = row * padded;
    // The k-th, as far as it is known.
    var least = vec2<u32>(0u, 0u);
    var known = vec2<u32>(0u, 0u);
    var wanted = k;
    for (var byte = 0u; byte < 8u; byte += 1u) {
        let shift = 24u - byte % 4u * 8u;
        atomicStore(&counts[lane], 0u);
        workgroupBarrier();
        for (var place = lane; place < extent; place += 256u) {
            let own = rank(start, place);
            if all((own & known) == least) {
                atomicAdd(&counts[(select(own.x, own.y, byte >= 4u) >> shift) & 0xffu], 1u);
            }
        }
        workgroupBarrier();
        // How many have that byte or a larger one.
        sums[lane] = atomicLoad(&counts[lane]);
        workgroupBarrier();
        for (var step = 1u; step < 256u; step *= 2u) {
            var more = 0u;
            if lane + step < 256u {
                more = sums[lane + step];
            }
            workgroupBarrier();
            sums[lane] += more;
            workgroupBarrier();
        }
        var larger = 0u;
        if lane < 255u {
            larger = sums[lane + 1u];
        }
        if sums[lane] >= wanted && larger < wanted {
            chosen = vec3<u32>(lane, wanted - larger, sums[lane] - larger);
        }
        let here = workgroupUniformLoad(&chosen);
        if byte < 4u {
            least.x |= here.x << shift;
            known.x |= 0xffu << shift;
        } else {
            least.y |= here.x << shift;
            known.y |= 0xffu << shift;
        }
        wanted = here.y;
        // All of them are.
        if here.y == here.z {
            break;
        }
    }
    if lane == 0u {
        atomicStore(&counts[0], 0u);
    }
    workgroupBarrier();
    for (var place = lane; place < extent; place += 256u) {
        if !is_larger(least, rank(start, place) & known) {
            result[base + atomicAdd(&counts[0], 1u)] = place;
        }
    }
    for (var place = k + lane; place < padded; place += 256u) {
        result[base + place] = NONE;
    }
    storageBarrier();
    // Source: K. E. Batcher, "Sorting networks and their applications" (1968), the bitonic sorter.
    for (var size = 2u; size <= padded; size *= 2u) {
        for (var stride = size / 2u; stride > 0u; stride /= 2u) {
            for (var pair = lane; pair < padded / 2u; pair += 256u) {
                let low = pair / stride * stride * 2u + pair % stride;
                let one = result[base + low];
                let other = result[base + low + stride];
                if comes_first(start, other, one) == ((low & size) == 0u) {
                    result[base + low] = other;
                    result[base + low + stride] = one;
                }
            }
            storageBarrier();
        }
    }
}
