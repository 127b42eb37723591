//! Compiles what libtorch's C interface lacks, with libtorch's headers: streams, and the allocator of a device.

fn main() {
    println!("cargo:rerun-if-changed=src/streams.cpp");
    #[cfg(all(feature = "libtorch", not(feature = "doc-only")))]
    {
        // What `torch-sys` was built with.
        let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
        let include = std::path::Path::new(&lib).with_file_name("include");
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .include(include)
            // Of libtorch's headers.
            .warnings(false)
            .file("src/streams.cpp")
            .compile("outrigger_streams");
    }
}
