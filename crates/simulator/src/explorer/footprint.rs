//! What a decision touched, as far as others can notice: on this rests all partial-order reduction.

/// Something that several CPUs can touch: a shared word, the request register of an APIC, what is left of a budget.
/// Numbered by the [system](super::system::System), densely from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u32);

/// How a place is touched. Two uses of one place commute if they are both [`Read`](Use::Read) or both
/// [`Raise`](Use::Raise).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// It is looked at.
    Read,
    /// It gets another value, which may depend on the old one.
    Write,
    /// A bit in it is set that nobody who sets it looks at: an interrupt is requested.
    Raise,
}

/// The places that one decision touched, and how.
///
/// Decisions of different CPUs whose footprints do not [conflict](Self::conflicts) can be exchanged: both orders lead
/// to the same state, and neither makes the other impossible. Decisions of one CPU are always in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    uses: [(Place, Use); Self::ROOM],
    len: u8,
    everything: bool,
}

impl Footprint {
    const ROOM: usize = 7;

    /// Touches nothing that others can notice.
    pub const NOTHING: Self = Self { uses: [(Place(0), Use::Read); Self::ROOM], len: 0, everything: false };

    /// Conflicts with everything: time passes.
    pub const EVERYTHING: Self = Self { everything: true, ..Self::NOTHING };

    /// Makes it [`NOTHING`](Self::NOTHING) again.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.everything = false;
    }

    /// Makes it equal to another one.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &Self) {
        for at in 0..other.len as usize {
            self.uses[at] = other.uses[at];
        }
        self.len = other.len;
        self.everything = other.everything;
    }

    /// Adds a use. Without room for more the footprint becomes [`EVERYTHING`](Self::EVERYTHING), which is right too.
    pub fn add(&mut self, place: Place, how: Use) {
        for (known, use_) in &mut self.uses[..self.len as usize] {
            if *known == place {
                if *use_ != how {
                    *use_ = Use::Write;
                }
                return;
            }
        }
        if (self.len as usize) < Self::ROOM {
            self.uses[self.len as usize] = (place, how);
            self.len += 1;
        } else {
            self.everything = true;
        }
    }

    /// Adds all uses of another footprint.
    pub fn add_all(&mut self, other: &Self) {
        for &(place, how) in other.uses() {
            self.add(place, how);
        }
        self.everything |= other.everything;
    }

    /// The uses, in the order in which they were added.
    pub fn uses(&self) -> &[(Place, Use)] {
        &self.uses[..self.len as usize]
    }

    /// Whether it conflicts with everything.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether decisions of two different CPUs with these footprints cannot be exchanged.
    #[inline]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.everything
            || other.everything
            || self.uses().iter().any(|&(place, how)| {
                other.uses().iter().any(|&(theirs, use_)| {
                    place == theirs && !(how == use_ && matches!(how, Use::Read | Use::Raise))
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(place: u32, how: Use) -> Footprint {
        let mut footprint = Footprint::NOTHING;
        footprint.add(Place(place), how);
        footprint
    }

    #[test]
    fn only_reads_and_only_raises_of_one_place_commute() {
        for (a, b, conflict) in [
            (Use::Read, Use::Read, false),
            (Use::Raise, Use::Raise, false),
            (Use::Read, Use::Raise, true),
            (Use::Read, Use::Write, true),
            (Use::Raise, Use::Write, true),
            (Use::Write, Use::Write, true),
        ] {
            assert_eq!(one(1, a).conflicts(&one(1, b)), conflict);
            assert_eq!(one(1, b).conflicts(&one(1, a)), conflict);
            assert!(!one(1, a).conflicts(&one(2, b)));
        }
    }

    #[test]
    fn a_place_used_in_two_ways_is_written() {
        let mut footprint = one(1, Use::Read);
        footprint.add(Place(1), Use::Raise);
        assert_eq!(footprint.uses(), [(Place(1), Use::Write)]);
    }

    #[test]
    fn a_footprint_without_room_conflicts_with_everything() {
        let mut footprint = Footprint::NOTHING;
        for place in 0..20 {
            footprint.add(Place(place), Use::Read);
        }
        assert!(footprint.conflicts(&Footprint::NOTHING));
        assert!(!one(1, Use::Write).conflicts(&Footprint::NOTHING));
    }
}
