fn element(i: u32) -> vec2<u32> {
    return vec2<u32>(source[place_in(i)], 0u);
}
