// Keeps the first index that is none, where there is one. params: 1, where its check is.
fn each(number: u32) {
    let at = atomicLoad(&status[params[1]]);
    if number == 0u && at != 0u {
        atomicStore(&status[params[1] + 1u], index_words(~at).x);
        atomicStore(&status[params[1] + 2u], index_words(~at).y);
    }
}
