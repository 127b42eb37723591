// Where the k largest of each row are, a workgroup for each row: again and again the largest of those that come after the one before.
// params: rows, extent, elements after the axis, k.
const NONE = 0xffffffffu;

var<workgroup> keys: array<u32, 256>;
var<workgroup> places: array<u32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params[0] {
        return;
    }
    let extent = params[1];
    let inner = params[2];
    let k = params[3];
    let start = (row / inner) * extent * inner + row % inner;
    var last_key = 0u;
    var last_place = 0u;
    for (var rank = 0u; rank < k; rank += 1u) {
        var best_key = 0u;
        var best_place = NONE;
        for (var place = lane; place < extent; place += 256u) {
            let key = source_order(start + place * inner);
            let is_left = rank == 0u || key < last_key || (key == last_key && place > last_place);
            if is_left && (best_place == NONE || key > best_key) {
                best_key = key;
                best_place = place;
            }
        }
        keys[lane] = best_key;
        places[lane] = best_place;
        workgroupBarrier();
        for (var half = 128u; half > 0u; half /= 2u) {
            if lane < half {
                let key = keys[lane + half];
                let place = places[lane + half];
                let is_better = places[lane] == NONE
                    || key > keys[lane]
                    || (key == keys[lane] && place < places[lane]);
                if place != NONE && is_better {
                    keys[lane] = key;
                    places[lane] = place;
                }
            }
            workgroupBarrier();
        }
        last_key = keys[0];
        last_place = places[0];
        if lane == 0u {
            result[((row / inner) * k + rank) * inner + row % inner] = last_place;
        }
        workgroupBarrier();
    }
}
