//! How many calls and IPIs are under way.

use smpcall_machine::Event;

use super::flows::Flows;
use crate::timeline::Activity;

/// The calls that their callers wait for: from being queued to being completed, withdrawn, refused or left behind. A call
/// to many is one call.
pub(super) fn calls(activity: &Activity, events: &[&Event], flows: &Flows) -> Vec<(u64, i64)> {
    let time = |place: usize| events[place].time.as_nanos();
    counts(activity.first, flows.calls.iter().map(|&(queued, ended)| (time(queued), ended.map(time))))
}

/// The IPIs that have left and are not accepted, merged, rejected or lost.
pub(super) fn ipis(activity: &Activity) -> Vec<(u64, i64)> {
    let ways = activity.messages.iter();
    counts(activity.first, ways.map(|message| (message.sent.unwrap_or(activity.first), message.end())))
}

/// How many of the intervals hold each moment: a value whenever it changes, beginning with the one at `first`.
fn counts(first: u64, intervals: impl Iterator<Item = (u64, Option<u64>)>) -> Vec<(u64, i64)> {
    let mut changes = vec![(first, 0)];
    for (begin, end) in intervals {
        // The end may be stamped before the beginning, by another CPU's clock.
        changes.push((end.map_or(begin, |end| begin.min(end)), 1));
        changes.extend(end.map(|end| (begin.max(end), -1)));
    }
    changes.sort_unstable();
    let mut values: Vec<(u64, i64)> = Vec::new();
    let mut value = 0;
    for moment in changes.chunk_by(|one, other| one.0 == other.0) {
        value += moment.iter().map(|&(_, change)| change).sum::<i64>();
        if values.last().is_none_or(|&(_, last)| last != value) {
            values.push((moment[0].0, value));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_says_what_is_under_way_and_only_when_that_changes() {
        let intervals = [(10, Some(20)), (15, Some(20)), (20, Some(30)), (40, Some(35)), (50, None)];
        let expected = [(0, 0), (10, 1), (15, 2), (20, 1), (30, 0), (35, 1), (40, 0), (50, 1)];
        assert_eq!(counts(0, intervals.into_iter()), expected);
        assert_eq!(counts(7, [(8, Some(8))].into_iter()), [(7, 0)]);
    }
}
