fn element(i: u32) -> vec2<u32> {
    return vec2<u32>(source[i], 0u);
}
