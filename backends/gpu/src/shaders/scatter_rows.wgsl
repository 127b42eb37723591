// For each row of the result 1 + the number of the last index that means it; zeros before. params: indices, rows, the step's number.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.y * groups.x + group.x) * 256u + lane;
    if number >= params[0] {
        return;
    }
    let index = source_index(number);
    if index >= params[1] {
        atomicMax(&status, params[2]);
    } else {
        atomicMax(&result[index], number + 1u);
    }
}
