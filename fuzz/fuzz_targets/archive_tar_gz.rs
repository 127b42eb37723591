//! Archives as tar within gzip, the gzip being the input's or ours.
#![no_main]

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{Input, archives};
use outrigger_store::archive::ArchiveKind;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let packed = match input.byte() {
        0x1f => data.to_vec(),
        level => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(u32::from(level % 3)));
            encoder.write_all(&archives::summed(input.rest())).expect("memory is there");
            encoder.finish().expect("memory is there")
        }
    };
    if let Some(found) = archives::unpacked(ArchiveKind::TarGz, &packed) {
        let mut tar = Vec::new();
        MultiGzDecoder::new(&packed[..]).read_to_end(&mut tar).expect("what was taken unpacks");
        archives::check_tar(&tar, &found);
    }
});
