//! Slices of one CPU on as few tracks as can hold them: Perfetto's slices nest, or stand on different tracks.

/// Something that lasts, with what is to be said about it.
#[derive(Clone, Debug)]
pub(super) struct Slice<T> {
    /// Nanoseconds, like `end`.
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) what: T,
}

/// One end of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edge<T> {
    Begin(T),
    End,
}

/// The edges on each track, with their times, in the order in which they are to be written. On each track they are
/// balanced and nest. What overlaps without nesting goes to the first further track that has room.
pub(super) fn lanes<T>(mut slices: Vec<Slice<T>>) -> Vec<Vec<(u64, Edge<T>)>> {
    // Stable: of two that are equal, the first encloses the second.
    slices.sort_by_key(|slice| (slice.begin, core::cmp::Reverse(slice.end)));
    let mut lanes: Vec<Lane<T>> = Vec::new();
    for slice in slices {
        for lane in &mut lanes {
            lane.close(slice.begin);
        }
        let room = lanes.iter().position(|lane| lane.open.last().is_none_or(|&end| slice.end <= end));
        let room = room.unwrap_or_else(|| {
            lanes.push(Lane { open: Vec::new(), edges: Vec::new() });
            lanes.len() - 1
        });
        lanes[room].edges.push((slice.begin, Edge::Begin(slice.what)));
        lanes[room].open.push(slice.end);
    }
    let closed = lanes.into_iter().map(|mut lane| {
        lane.close(u64::MAX);
        lane.edges
    });
    closed.collect()
}

struct Lane<T> {
    /// When those end that are open, the innermost last.
    open: Vec<u64>,
    edges: Vec<(u64, Edge<T>)>,
}

impl<T> Lane<T> {
    /// Ends what ends until `now`.
    fn close(&mut self, now: u64) {
        while let Some(end) = self.open.pop_if(|end| *end <= now) {
            self.edges.push((end, Edge::End));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slices(ends: &[(u64, u64)]) -> Vec<Slice<usize>> {
        let slices = ends.iter().enumerate().map(|(what, &(begin, end))| Slice { begin, end, what });
        slices.collect()
    }

    #[test]
    fn what_nests_is_on_one_track_and_what_overlaps_is_on_a_second() {
        let nested = lanes(slices(&[(0, 10), (2, 5), (5, 5), (5, 10), (10, 12)]));
        assert_eq!(nested.len(), 1);
        let overlapping = lanes(slices(&[(0, 10), (5, 15), (6, 9)]));
        assert_eq!(overlapping[1], [(5, Edge::Begin(1)), (15, Edge::End)]);
        assert_eq!(overlapping.len(), 2);
    }

    proptest! {
        #[test]
        fn on_every_track_edges_are_balanced_in_time_order_and_each_slice_keeps_its_ends(
            ends in prop::collection::vec((0_u64..30, 0_u64..30), 0..40)
        ) {
            let ends: Vec<_> = ends.into_iter().map(|(begin, length)| (begin, begin + length)).collect();
            let mut found = Vec::new();
            for lane in lanes(slices(&ends)) {
                prop_assert!(lane.is_sorted_by_key(|(time, _)| *time));
                let mut open = Vec::new();
                for (time, edge) in lane {
                    match edge {
                        Edge::Begin(what) => open.push((what, time)),
                        Edge::End => {
                            let (what, begin) = open.pop().expect("an end has a beginning");
                            found.push((what, (begin, time)));
                        }
                    }
                }
                prop_assert!(open.is_empty());
            }
            found.sort_unstable();
            prop_assert_eq!(found, ends.into_iter().enumerate().collect::<Vec<_>>());
        }
    }
}
