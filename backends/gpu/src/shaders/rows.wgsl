// A workgroup for each row. params begin with: rows, extent, elements after the axis.
@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row < params[0] {
        one_row(row, lane);
    }
}

// The first element of a row; the others follow by as many as come after the axis.
fn first_of(row: u32) -> u32 {
    return (row / params[2]) * params[1] * params[2] + row % params[2];
}
