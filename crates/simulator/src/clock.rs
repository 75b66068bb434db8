//! What a CPU's clock shows at a moment of virtual time: the moment itself, unless a fault lets the clock stand still.

/// A CPU's clock. It never goes backwards: after it stood still, it goes on from where it stood.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// When it stands still: from, until. In order, apart from each other.
    stops: Vec<(u64, u64)>,
}

impl Clock {
    /// Lets it stand still from a moment until another one.
    pub(crate) fn stop(&mut self, from: u64, until: u64) {
        self.stops.push((from, until));
        self.stops.sort_unstable();
        self.stops.dedup_by(|next, before| {
            let together = next.0 <= before.1;
            if together {
                before.1 = before.1.max(next.1);
            }
            together
        });
    }

    /// What it shows at a moment.
    #[inline]
    pub(crate) fn reading(&self, moment: u64) -> u64 {
        let stood: u64 = self.stops.iter().map(|&(from, until)| moment.min(until).saturating_sub(from)).sum();
        moment - stood
    }

    /// The first moment at which it shows this, or more; the end of time if it never will.
    pub(crate) fn moment(&self, reading: u64) -> u64 {
        let mut stood = 0_u64;
        for &(from, until) in &self.stops {
            if reading.saturating_add(stood) <= from {
                break;
            }
            if until == u64::MAX {
                return u64::MAX;
            }
            stood += until - from;
        }
        reading.saturating_add(stood)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_clock_that_stands_still_for_ever_never_shows_more() {
        let mut clock = Clock::default();
        clock.stop(100, u64::MAX);
        assert_eq!([99, 100, 5000].map(|moment| clock.reading(moment)), [99, 100, 100]);
        assert_eq!([99, 100, 101].map(|reading| clock.moment(reading)), [99, 100, u64::MAX]);
    }

    proptest! {
        #[test]
        fn a_clock_goes_on_from_where_it_stood(
            stops in prop::collection::vec((0u64..200, 0u64..50), 0..5),
            reading in 0u64..400,
        ) {
            let mut clock = Clock::default();
            for &(from, length) in &stops {
                clock.stop(from, from + length);
            }
            // By counting.
            let stands = |moment: u64| stops.iter().any(|&(from, length)| (from..from + length).contains(&moment));
            let mut shown = 0;
            for moment in 0..400 {
                prop_assert_eq!(clock.reading(moment), shown);
                shown += u64::from(!stands(moment));
            }
            let moment = clock.moment(reading);
            prop_assert!(clock.reading(moment) >= reading);
            prop_assert!(moment == 0 || clock.reading(moment - 1) < reading);
        }
    }
}
