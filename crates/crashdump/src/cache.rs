//! The pages of a source that were read last, and a note of all that ever were.
//!
//! Pages are kept in a fixed number of frames and replaced by the clock algorithm: a hand goes round, takes the first
//! page that was not asked for since it came by last. Small reads go through it; a read of whole pages goes past it,
//! straight into the caller's memory, because what is read in bulk (a symbol table) is read once.
//!
//! Of a source that lives, everything is kept that was read, as it was read: what is looked at twice is then the same,
//! and an extract holds what the diagnosis saw.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::memory::{PAGE_BYTES, by_pieces, end};
use crate::{PhysicalMemory, ReadError};

/// How many pages are kept: 4 MiB. The kernel structures that a diagnosis goes back to, page tables included, are a
/// fraction of it.
const FRAMES: usize = 1024;

/// How many pages of a source that lives are kept: 128 MiB, ten times of what a diagnosis reads.
const LIVING_FRAMES: usize = 1 << 15;

/// So much around a page of a source that lives is read at once: for a monitor it costs what a page costs.
const AROUND: u64 = 16 * PAGE_BYTES;

/// Reads of this many bytes and more do not go through the cache.
const BULK: usize = 4 * PAGE_BYTES as usize;

/// Physical memory with a cache in front of it.
#[derive(Debug)]
pub struct Cached {
    source: Box<dyn PhysicalMemory>,
    lives: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: Vec<Frame>,
    /// Which frame holds a page, by page number.
    by_page: FxHashMap<u64, usize>,
    hand: usize,
    /// The numbers of all pages that were read.
    touched: FxHashSet<u64>,
}

#[derive(Debug)]
struct Frame {
    page: u64,
    asked: bool,
    /// Whether the page is among those that were read, and is not only kept beside one.
    noted: bool,
    bytes: Box<[u8; PAGE_BYTES as usize]>,
}

impl State {
    /// The frame that the next page may have, emptied.
    fn free_frame(&mut self, limit: usize) -> usize {
        if self.frames.len() < limit {
            self.frames.push(Frame {
                page: u64::MAX,
                asked: false,
                noted: false,
                bytes: Box::new([0; PAGE_BYTES as usize]),
            });
            return self.frames.len() - 1;
        }
        // Ends after two rounds: the first takes the mark from every frame.
        loop {
            let hand = self.hand;
            self.hand = (hand + 1) % limit;
            let frame = &mut self.frames[hand];
            if !std::mem::take(&mut frame.asked) {
                self.by_page.remove(&frame.page);
                (frame.page, frame.noted) = (u64::MAX, false);
                return hand;
            }
        }
    }
}

impl State {
    fn keep(&mut self, page: u64, bytes: &[u8], limit: usize) {
        let known = self.by_page.get(&page).copied();
        let place = known.unwrap_or_else(|| self.free_frame(limit));
        let frame = &mut self.frames[place];
        frame.page = page;
        frame.bytes.copy_from_slice(bytes);
        self.by_page.insert(page, place);
    }
}

impl Cached {
    /// A cache, empty, in front of `source`.
    pub fn new(source: Box<dyn PhysicalMemory>) -> Self {
        Self { source, lives: false, state: Mutex::default() }
    }

    /// The same, in front of a source that lives.
    pub fn living(source: Box<dyn PhysicalMemory>) -> Self {
        Self { source, lives: true, state: Mutex::default() }
    }

    /// The source itself. What is read there is neither kept nor noted: for scans, and for looking again at what may
    /// have changed.
    pub fn source(&self) -> &dyn PhysicalMemory {
        &*self.source
    }

    /// The ranges of physical addresses that were read, in whole pages, in order.
    pub fn touched(&self) -> Vec<Range<u64>> {
        let mut pages: Vec<u64> = self.state().touched.iter().copied().collect();
        pages.sort_unstable();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for begin in pages.into_iter().map(|page| page * PAGE_BYTES) {
            let end = begin.saturating_add(PAGE_BYTES);
            match ranges.last_mut() {
                Some(last) if last.end == begin => last.end = end,
                _ => ranges.push(begin..end),
            }
        }
        ranges
    }

    /// Forgets the pages that are kept, so that they are read anew: for a source that lives.
    pub fn forget(&self) {
        let mut state = self.state();
        state.frames.clear();
        state.by_page.clear();
        state.hand = 0;
    }

    /// Nothing is done under the lock that could leave the state half changed and panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_piece(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let page = address / PAGE_BYTES;
        let at = (address % PAGE_BYTES) as usize;
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(&frame) = state.by_page.get(&page) {
            let frame = &mut state.frames[frame];
            frame.asked = true;
            if !std::mem::replace(&mut frame.noted, true) {
                state.touched.insert(page);
            }
            into.copy_from_slice(&frame.bytes[at..at + into.len()]);
            return Ok(());
        }
        if self.lives && self.read_around(state, page) {
            let frame = &mut state.frames[state.by_page[&page]];
            into.copy_from_slice(&frame.bytes[at..at + into.len()]);
            state.touched.insert(page);
            return Ok(());
        }
        let free = state.free_frame(self.frames());
        let frame = &mut state.frames[free];
        if self.source.read_physical(page * PAGE_BYTES, &mut frame.bytes[..]).is_ok() {
            // The mark is for pages that are asked for again, or one scan would empty the cache.
            (frame.page, frame.asked, frame.noted) = (page, false, true);
            into.copy_from_slice(&frame.bytes[at..at + into.len()]);
            state.by_page.insert(page, free);
        } else {
            // Not the whole page is there: perhaps what was asked for is.
            self.source.read_physical(address, into)?;
        }
        state.touched.insert(page);
        Ok(())
    }

    const fn frames(&self) -> usize {
        if self.lives { LIVING_FRAMES } else { FRAMES }
    }

    /// Reads what is around a page, and keeps what is not kept already. Returns whether it could.
    fn read_around(&self, state: &mut State, page: u64) -> bool {
        let begin = page * PAGE_BYTES / AROUND * AROUND;
        let mut bytes = vec![0; AROUND as usize];
        if self.source.read_physical(begin, &mut bytes).is_err() {
            return false;
        }
        for (page, bytes) in (begin / PAGE_BYTES..).zip(bytes.chunks_exact(PAGE_BYTES as usize)) {
            if !state.by_page.contains_key(&page) {
                state.keep(page, bytes, self.frames());
            }
        }
        true
    }
}

impl PhysicalMemory for Cached {
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        if into.len() < BULK {
            return by_pieces(address, into, PAGE_BYTES, |address, piece| self.read_piece(address, piece));
        }
        let end = end(address, into.len())?;
        self.source.read_physical(address, into)?;
        if self.lives {
            // Whole pages; of the first and the last, what was read is not all.
            let first = address.next_multiple_of(PAGE_BYTES);
            let pages = into[(first - address) as usize..].chunks_exact(PAGE_BYTES as usize);
            let mut state = self.state();
            for (page, bytes) in (first / PAGE_BYTES..).zip(pages) {
                state.keep(page, bytes, self.frames());
            }
        }
        self.state().touched.extend(address / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
        Ok(())
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.source.ranges()
    }

    fn existing(&self) -> Vec<Range<u64>> {
        self.source.existing()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Every word of 8 bytes holds its own address; counts reads; has nothing from `end` on.
    #[derive(Debug, Default)]
    struct Numbers {
        reads: std::sync::Arc<AtomicUsize>,
        end: u64,
    }

    impl PhysicalMemory for Numbers {
        fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
            // A count for a test on one thread.
            self.reads.fetch_add(1, Relaxed);
            for (at, byte) in (address..).zip(into) {
                if at >= self.end {
                    return Err(ReadError::Absent { address: at });
                }
                *byte = (at & !7).to_le_bytes()[(at % 8) as usize];
            }
            Ok(())
        }

        fn ranges(&self) -> Vec<Range<u64>> {
            vec![0..self.end]
        }
    }

    fn word(memory: &impl PhysicalMemory, address: u64) -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        memory.read_physical(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[test]
    fn a_page_is_read_once_while_it_is_kept() {
        let reads = std::sync::Arc::default();
        let cached = Cached::new(Box::new(Numbers { reads: std::sync::Arc::clone(&reads), end: 1 << 30 }));
        for address in (0x5000..0x6000).step_by(8) {
            assert_eq!(word(&cached, address), Ok(address));
        }
        assert_eq!(reads.load(Relaxed), 1);
        cached.forget();
        assert_eq!(word(&cached, 0x5000), Ok(0x5000));
        assert_eq!(reads.load(Relaxed), 2);
    }

    #[test]
    fn what_is_kept_is_bounded_and_never_wrong() {
        let cached = Cached::new(Box::new(Numbers { end: 1 << 40, ..Numbers::default() }));
        for round in 0..3 {
            for page in 0..3 * FRAMES as u64 {
                let address = page * PAGE_BYTES + round * 8;
                assert_eq!(word(&cached, address), Ok(address));
            }
        }
        let state = cached.state();
        assert_eq!((state.frames.len(), state.by_page.len()), (FRAMES, FRAMES));
        assert_eq!(state.touched.len(), 3 * FRAMES);
    }

    #[test]
    fn pages_asked_for_again_and_again_stay() {
        let reads = std::sync::Arc::default();
        let cached = Cached::new(Box::new(Numbers { reads: std::sync::Arc::clone(&reads), end: 1 << 40 }));
        for page in 0..4 * FRAMES as u64 {
            assert_eq!(word(&cached, 8), Ok(8));
            assert_eq!(word(&cached, (page + 1) * PAGE_BYTES), Ok((page + 1) * PAGE_BYTES));
        }
        assert_eq!(reads.load(Relaxed), 1 + 4 * FRAMES, "the first page was read once");
    }

    #[test]
    fn bulk_goes_past_and_is_noted() {
        let cached = Cached::new(Box::new(Numbers { end: 1 << 30, ..Numbers::default() }));
        let mut bytes = vec![0; 5 * PAGE_BYTES as usize];
        cached.read_physical(0x1008, &mut bytes).expect("is there");
        assert_eq!(bytes[..8], 0x1008u64.to_le_bytes());
        assert_eq!(cached.state().frames.len(), 0);
        assert_eq!(word(&cached, 0x9_0ffc), Ok(0x9_1000 << 32));
        assert_eq!(cached.touched(), [0x1000..0x7000, 0x9_0000..0x9_2000]);
    }

    /// Every byte is the number of the read that it came from.
    #[derive(Debug, Default)]
    struct Changing(AtomicUsize);

    impl PhysicalMemory for Changing {
        fn read_physical(&self, _: u64, into: &mut [u8]) -> Result<(), ReadError> {
            // A count for a test on one thread.
            into.fill(self.0.fetch_add(1, Relaxed) as u8);
            Ok(())
        }

        fn ranges(&self) -> Vec<Range<u64>> {
            vec![0..1 << 30]
        }
    }

    #[test]
    fn what_lives_is_kept_as_it_was_read() {
        let cached = Cached::living(Box::new(Changing::default()));
        let byte = |address| {
            let mut byte = [0];
            cached.read_physical(address, &mut byte).map(|()| byte[0])
        };
        assert_eq!(byte(0x1000), Ok(0));
        let mut bulk = vec![0; 6 * PAGE_BYTES as usize];
        cached.read_physical(0x800, &mut bulk).expect("is there");
        assert_eq!(bulk[0], 1);
        // Whole pages as the later read saw them; the first, of which it saw half, and what was read around it, as before.
        assert_eq!((byte(0x1000), byte(0x5fff)), (Ok(1), Ok(1)));
        assert_eq!((byte(0x800), byte(0x6000)), (Ok(0), Ok(0)));
        assert_eq!(cached.touched(), [0..0x7000]);
        assert_eq!((byte(0xf000), byte(0x1_0000)), (Ok(0), Ok(2)));
        assert_eq!(
            cached.touched(),
            [0..0x7000, 0xf000..0x1_1000],
            "what lies around is not noted before it is asked for"
        );
        cached.forget();
        assert_eq!(byte(0x1000), Ok(3));
    }

    #[test]
    fn part_of_a_page_is_read_if_not_all_of_it_is_there() {
        let cached = Cached::new(Box::new(Numbers { end: 0x1010, ..Numbers::default() }));
        assert_eq!(word(&cached, 0x1008), Ok(0x1008));
        assert_eq!(word(&cached, 0x1009), Err(ReadError::Absent { address: 0x1010 }));
        assert_eq!(word(&cached, u64::MAX - 3), Err(ReadError::Wraps { address: u64::MAX - 3, length: 8 }));
        assert_eq!(cached.touched(), [0x1000..0x2000]);
    }
}
