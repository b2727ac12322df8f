//! Rows packed by xz or by zstd, unpacked while they are read.

use std::io::{self, BufRead, BufReader, Read};

use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Memory that an xz file may ask for, in KiB; `xz -9` asks for 65 MiB.
const XZ_MEMORY: u32 = 512 << 10;

/// Unpacks an xz file.
pub(super) fn xz(file: impl BufRead + Send + 'static) -> Box<dyn BufRead + Send> {
    let unpacked = XzReader::new_mem_limit(file, true, XZ_MEMORY);
    Box::new(BufReader::new(unpacked))
}

/// Unpacks a zstd file.
pub(super) fn zstd(file: impl BufRead + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::new(Frames {
        decoder: FrameDecoder::new(),
        source: file,
        inside: false,
    }))
}

/// The frames of a zstd file as one stream, as `zstd` itself reads them.
struct Frames<R: BufRead> {
    decoder: FrameDecoder,
    source: R,
    inside: bool,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.inside {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(io::Error::other)?;
                }
                let read = self.decoder.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                let said = self.decoder.get_checksum_from_data();
                if said.is_some() && said != self.decoder.get_calculated_checksum() {
                    return Err(io::Error::other("a zstd checksum does not hold"));
                }
                self.inside = false;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => self.inside = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = self.source.by_ref().take(length.into());
                    io::copy(&mut skipped, &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}
