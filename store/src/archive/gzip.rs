//! gzip, as it unpacks: its checksums are checked, and how much comes out is held against how much went in.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::BUFFER;
use super::error::ArchiveError;
use super::limits::excessive;
use super::source::Source;

/// Unpacks all members of a gzip file, as RFC 1952 has it: one after the other, as parallel compressors write them. What follows the
/// last one and is none is an error, padding too.
pub(super) struct Gunzip<R> {
    decoder: MultiGzDecoder<BufReader<Source<R>>>,
    unpacked: u64,
    ratio: u64,
}

impl<R: Read> Gunzip<R> {
    pub(super) fn new(source: Source<R>, ratio: u64) -> Self {
        let decoder = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, source));
        Self { decoder, unpacked: 0, ratio }
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.unpacked += read as u64;
        // Up to a buffer of it has been read ahead, which is what the ratio may be off by.
        let (unpacked, packed, limit) = (self.unpacked, self.decoder.get_ref().get_ref().taken(), self.ratio);
        if excessive(unpacked, packed, limit) {
            return Err(io::Error::other(ArchiveError::Ratio { unpacked, packed, limit }));
        }
        Ok(read)
    }
}
