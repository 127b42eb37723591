//! Compressed bodies: what they become is within its limits of size, ratio and memory, and the same that others read. Some are made here, so that
//! they are whole.
#![no_main]

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::{Input, memory};
use outrigger_protocol::ErrorCode;
use outrigger_runtime::fuzzing::inflate;

/// May have any ratio.
const FREE: usize = 64 << 10;
/// The tables of deflate, and what memory is taken in.
const MEMORY: usize = 512 << 10;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (is_gzip, is_made) = (input.below(2) == 0, input.below(2) == 0);
    let bytes = 1 + input.below(255) * 1024;
    let (ratio, all) = (1 + input.below(255), 1 + input.below(255) * 2048);
    let (body, whole) = match is_made {
        true => {
            // What the input says, over and over.
            let (times, text) = (1 + input.below(255), input.rest());
            let whole = text.repeat(times.min(1 + (1 << 20) / text.len().max(1)));
            (compressed(is_gzip, &whole), Some(whole))
        }
        false => (input.rest().to_vec(), None),
    };
    let most = bytes.min(FREE.max(ratio * body.len()));
    let inflated = memory::within(MEMORY + 3 * most, || inflate(is_gzip, &body, bytes, ratio, all));
    match inflated {
        Ok(inflated) => {
            assert!(inflated.len() <= most.min(all), "{} bytes", inflated.len());
            assert_eq!(read(is_gzip, &body, most).as_deref(), Some(&inflated[..]));
            assert!(whole.is_none_or(|whole| whole == inflated));
        }
        Err(ErrorCode::BodyTooLarge) => {
            assert!(whole.is_none_or(|whole| whole.len() > most));
        }
        // Room is asked for before it is known how much of it is needed.
        Err(ErrorCode::Overloaded) => assert!(all < 2 * most + FREE),
        Err(code) => {
            assert_eq!(code, ErrorCode::BadRequest);
            assert!(whole.is_none(), "it is whole");
        }
    }
});

fn compressed(is_gzip: bool, whole: &[u8]) -> Vec<u8> {
    if is_gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(whole).expect("memory is there");
        return encoder.finish().expect("memory is there");
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(whole).expect("memory is there");
    encoder.finish().expect("memory is there")
}

/// What another reader makes of it, which does not go beyond `most` by much.
fn read(is_gzip: bool, body: &[u8], most: usize) -> Option<Vec<u8>> {
    let (mut read, most) = (Vec::new(), most as u64 + 1);
    let done = match is_gzip {
        true => GzDecoder::new(body).take(most).read_to_end(&mut read),
        false => ZlibDecoder::new(body).take(most).read_to_end(&mut read),
    };
    done.ok().map(|_| read)
}
