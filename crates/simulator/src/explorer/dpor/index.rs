//! The events of an execution by what they touched, so that a search for races looks at few of them.

use super::path::{ANYTHING, Digest};

/// Positions are handled so many at once.
const BLOCK: usize = 64;

/// The positions of a block, one bit each, for each bit of a digest.
type Positions = [u64; Digest::BITS as usize];

const NONE: Positions = [0; Digest::BITS as usize];

struct Block {
    touched: Positions,
    withheld: Positions,
}

/// The positions of the events with each bit in the digest of what they touched, and of what their CPU was not offered.
#[derive(Default)]
pub(super) struct Index {
    blocks: Vec<Block>,
    events: usize,
}

impl Index {
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.events = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>()
    }

    /// Adds the event at the next position.
    pub(super) fn push(&mut self, touched: Digest, withheld: Digest) {
        let (block, bit) = (self.events / BLOCK, 1 << (self.events % BLOCK));
        if block == self.blocks.len() {
            self.blocks.push(Block { touched: NONE, withheld: NONE });
        }
        let block = &mut self.blocks[block];
        bits(touched).for_each(|at| block.touched[at] |= bit);
        bits(withheld).for_each(|at| block.withheld[at] |= bit);
        self.events += 1;
    }

    /// Removes the last event, which was added with these digests.
    pub(super) fn pop(&mut self, touched: Digest, withheld: Digest) {
        self.events -= 1;
        let (block, bit) = (self.events / BLOCK, 1_u64 << (self.events % BLOCK));
        let block = &mut self.blocks[block];
        bits(touched).for_each(|at| block.touched[at] &= !bit);
        bits(withheld).for_each(|at| block.withheld[at] &= !bit);
    }

    /// Shows the positions, the last one first, of the events that touched something of `touched`, or whose CPU was withheld
    /// something of `withheld`.
    #[inline]
    pub(super) fn each(&self, touched: Digest, withheld: Digest, mut see: impl FnMut(usize)) {
        for (number, block) in self.blocks[..self.events.div_ceil(BLOCK)].iter().enumerate().rev() {
            let mut left = any(&block.touched, touched) | any(&block.withheld, withheld);
            while left != 0 {
                let last = left.ilog2() as usize;
                see(number * BLOCK + last);
                left ^= 1 << last;
            }
        }
    }
}

/// The positions with any of these bits.
#[inline]
fn any(positions: &Positions, digest: Digest) -> u64 {
    if digest & ANYTHING != 0 {
        // This one all have.
        return positions[ANYTHING.ilog2() as usize];
    }
    bits(digest).fold(0, |any, at| any | positions[at])
}

/// The numbers of the bits that are set.
#[inline]
fn bits(mut digest: Digest) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let first = digest.trailing_zeros() as usize;
        digest &= digest.wrapping_sub(1);
        (first < BLOCK).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_found_are_those_with_a_bit_in_common_and_all_if_anything_is_looked_for() {
        let digests: Vec<(Digest, Digest)> =
            (0..200_u64).map(|at| (ANYTHING | 1 << (at % 7), ANYTHING | 1 << (at % 62))).collect();
        let mut index = Index::default();
        // What was there before leaves no trace.
        for _ in 0..3 {
            for &(touched, withheld) in &digests {
                index.push(touched, withheld);
            }
            for (touched, withheld) in [(1, 0), (0, 1 << 40), (6, 1 << 61), (!0, 0), (0, !0), (0, 0)] {
                let mut found = Vec::new();
                index.each(touched, withheld, |position| found.push(position));
                let wanted = (0..digests.len())
                    .rev()
                    .filter(|&at| (digests[at].0 & touched) | (digests[at].1 & withheld) != 0);
                assert_eq!(found, wanted.collect::<Vec<_>>(), "{touched:#x} {withheld:#x}");
            }
            for &(touched, withheld) in digests.iter().rev() {
                index.pop(touched, withheld);
            }
            index.each(!0, !0, |position| panic!("there is no event {position}"));
        }
    }
}
