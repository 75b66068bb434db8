//! Pages as a kdump-compressed dump stores them: each compressed by itself, by one of four methods, or not at all.
//!
//! A compressed page says how long it is; what comes out is never longer than was asked for.

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::FrameDecoder;

/// How a page is stored: the flags of its descriptor. Source: makedumpfile, `diskdump_mod.h` (facts only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// As it is.
    None,
    /// zlib.
    Zlib,
    /// LZO1X.
    Lzo,
    /// Snappy, without its frame.
    Snappy,
    /// Zstandard: one frame.
    Zstd,
}

impl Method {
    /// Of the flags of a descriptor; none if they are not known.
    pub(crate) const fn from_flags(flags: u32) -> Option<Self> {
        match flags {
            0 => Some(Self::None),
            0x1 => Some(Self::Zlib),
            0x2 => Some(Self::Lzo),
            0x4 => Some(Self::Snappy),
            0x20 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A frame of Zstandard that wants more memory than this for its window is no page. (A writer that does not know how
/// much will come takes 2 MiB.)
const MAXIMUM_WINDOW: u64 = 8 << 20;

/// What the methods keep from page to page.
pub(crate) struct Decompressor {
    zlib: Decompress,
    snappy: snap::raw::Decoder,
    zstd: FrameDecoder,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self { zlib: Decompress::new(true), snappy: snap::raw::Decoder::new(), zstd: FrameDecoder::new() }
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// Fills `page` with the first `wanted` bytes of what is stored, or more. `page` is as long as a page is.
    ///
    /// # Errors
    /// Why these bytes are not that page.
    pub(crate) fn page(
        &mut self,
        method: Method,
        stored: &[u8],
        page: &mut [u8],
        wanted: usize,
    ) -> Result<(), &'static str> {
        let length = page.len();
        let written = match method {
            Method::None => {
                page.get_mut(..stored.len()).ok_or("it is longer than a page")?.copy_from_slice(stored);
                stored.len()
            }
            Method::Zlib => return self.zlib(stored, page, wanted),
            Method::Lzo => lzo::decompress_into(stored, page).map_err(|_| "it is no page in LZO")?,
            Method::Snappy => self.snappy.decompress(stored, page).map_err(|_| "it is no page in Snappy")?,
            Method::Zstd => {
                if window(stored).is_none_or(|window| window > MAXIMUM_WINDOW) {
                    return Err("it is no page in Zstandard: its frame says nothing that can be");
                }
                self.zstd.decode_all(stored, page).map_err(|_| "it is no page in Zstandard")?
            }
        };
        if written == length { Ok(()) } else { Err("it is shorter than a page") }
    }

    /// Only so much as is wanted: a scan for the beginnings of pages takes a fraction of the time.
    fn zlib(&mut self, stored: &[u8], page: &mut [u8], wanted: usize) -> Result<(), &'static str> {
        let whole = wanted == page.len();
        let page = page.get_mut(..wanted).ok_or("more is wanted of it than a page")?;
        self.zlib.reset(true);
        let status = self
            .zlib
            .decompress(stored, page, FlushDecompress::Finish)
            .map_err(|_| "it is no page in zlib")?;
        if self.zlib.total_out() != wanted as u64 {
            Err("it is shorter than a page")
        } else if whole && status != Status::StreamEnd {
            Err("it is longer than a page")
        } else {
            Ok(())
        }
    }
}

/// How much memory a frame of Zstandard wants for its window. Source: RFC 8878, 3.1.1.1.
fn window(frame: &[u8]) -> Option<u64> {
    let rest = frame.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (&descriptor, rest) = rest.split_first()?;
    if descriptor & 0x20 == 0 {
        let &window = rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment: its window is its content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary..)?;
    match descriptor >> 6 {
        0 => Some(u64::from(*rest.first()?)),
        1 => Some(u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256),
        2 => Some(u64::from(u32::from_le_bytes(*rest.first_chunk()?))),
        _ => Some(u64::from_le_bytes(*rest.first_chunk()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    const PAGE: usize = 4096;

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    /// LZO1X, stored: one run of literals, and the end.
    fn lzo(bytes: &[u8]) -> Vec<u8> {
        // A run of more than 18: a zero, a zero for each 255, and the rest.
        let over = bytes.len() - 18;
        let mut stored = vec![0; 1 + (over - 1) / 255];
        stored.push(((over - 1) % 255 + 1) as u8);
        stored.extend_from_slice(bytes);
        stored.extend_from_slice(&[17, 0, 0]);
        stored
    }

    fn stored(method: Method, page: &[u8]) -> Vec<u8> {
        match method {
            Method::None => page.to_vec(),
            Method::Zlib => zlib(page),
            Method::Lzo => lzo(page),
            Method::Snappy => snap::raw::Encoder::new().compress_vec(page).expect("small"),
            Method::Zstd => zstd(page),
        }
    }

    const ALL: [Method; 5] = [Method::None, Method::Zlib, Method::Lzo, Method::Snappy, Method::Zstd];

    #[test]
    fn every_method_gives_the_page_back() {
        let page: Vec<u8> = (0..PAGE).map(|at| ((at * at) >> 3) as u8).collect();
        let mut decompressor = Decompressor::default();
        for round in 0..2 {
            for method in ALL {
                let mut read = vec![0xee; PAGE];
                let stored = stored(method, &page);
                assert_eq!(decompressor.page(method, &stored, &mut read, PAGE), Ok(()), "{method:?} {round}");
                assert_eq!(read, page, "{method:?}");
            }
        }
    }

    #[test]
    fn a_page_of_another_length_is_refused() {
        let mut decompressor = Decompressor::default();
        for method in ALL {
            for length in [PAGE - 1, PAGE + 1, 2 * PAGE, 100] {
                let stored = stored(method, &vec![7; length]);
                let result = decompressor.page(method, &stored, &mut [0; PAGE], PAGE);
                assert!(result.is_err(), "{method:?} {length}");
            }
        }
    }

    #[test]
    fn the_beginning_of_a_page_can_be_had_alone() {
        let page: Vec<u8> = (0..PAGE).map(|at| (at / 7) as u8).collect();
        let mut read = vec![0; PAGE];
        let mut decompressor = Decompressor::default();
        assert_eq!(decompressor.page(Method::Zlib, &zlib(&page), &mut read, 10), Ok(()));
        assert_eq!((&read[..10], &read[10..12]), (&page[..10], &[0; 2][..]));
        assert_eq!(
            decompressor.page(Method::Zlib, &zlib(&page[..9]), &mut read, 10),
            Err("it is shorter than a page")
        );
    }

    #[test]
    fn a_window_that_no_page_needs_is_refused_before_memory_is_taken_for_it() {
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xff]), Some((1 << 41) + (1 << 38) * 7));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 16]), Some(4096 + 256));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0]), None);
        assert_eq!(window(&[0x28, 0xb5, 0x2f]), None);
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &[0xff; 8], &[1, 0, 0]].concat();
        let error = Decompressor::default().page(Method::Zstd, &frame, &mut [0; PAGE], PAGE);
        assert!(error.is_err_and(|error| error.contains("nothing that can be")));
    }

    proptest! {
        #[test]
        fn damaged_pages_are_pages_or_errors(
            which in 0usize..5, damage in prop::collection::vec((0usize..5000, any::<u8>()), 0..5), cut in 0usize..5000
        ) {
            let page: Vec<u8> = (0..PAGE).map(|at| (at ^ (at >> 5)) as u8).collect();
            let mut stored = stored(ALL[which], &page);
            let length = stored.len();
            for (at, byte) in damage {
                stored[at % length] = byte;
            }
            stored.truncate(cut);
            let mut decompressor = Decompressor::default();
            let _ = decompressor.page(ALL[which], &stored, &mut [0; PAGE], PAGE);
            // And what comes after it is not spoilt by it.
            let mut read = vec![0; PAGE];
            let good = super::tests::stored(ALL[which], &page);
            prop_assert_eq!(decompressor.page(ALL[which], &good, &mut read, PAGE), Ok(()));
            prop_assert_eq!(read, page);
        }
    }
}
