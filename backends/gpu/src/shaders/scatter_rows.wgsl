// For each row of the result 1 + the number of the last index that means it, 0 where none does. params: rows, indices, the step's number.
fn element(i: u32) -> u32 {
    var last = 0u;
    for (var number = 0u; number < params[1]; number += 1u) {
        let index = source_index(number);
        if index == i {
            last = number + 1u;
        }
        if i == 0u && index >= params[0] {
            atomicMax(&status, params[2]);
        }
    }
    return last;
}
