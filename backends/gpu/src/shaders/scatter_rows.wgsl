// For each row of the result 1 + the number of the last index that means it; zeros before. params: indices, rows, where its check is.
fn each(number: u32) {
    if number >= params[0] {
        return;
    }
    let index = source_index(number);
    if index >= params[1] {
        // The first one that is none is the largest here.
        atomicMax(&status[params[2]], ~number);
    } else {
        atomicMax(&result[index], number + 1u);
    }
}
