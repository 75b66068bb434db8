//! Where a time stands on the page: close events are kept apart, idle gaps are cut short by a visible break.

// Heights are estimates: they need no more than a few digits of a gap.
#![allow(clippy::cast_precision_loss)]

use std::collections::BTreeSet;

/// A gap that is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Break {
    /// Nanoseconds: the last moment before it.
    pub(super) from: u64,
    /// Nanoseconds: the first moment after it.
    pub(super) to: u64,
    /// Pixels: the band that is drawn for it.
    pub(super) top: i32,
    /// Pixels.
    pub(super) bottom: i32,
}

/// What a scale is made for; nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Moments {
    /// The drawn moments: ascending, distinct.
    pub(super) times: Vec<u64>,
    /// Those of them that have a large glyph and label, which need room below them.
    pub(super) roomy: BTreeSet<u64>,
    /// No gap up to this is a break.
    pub(super) together: u64,
}

/// A monotonic map from time to pixels, with all drawn moments as its stops.
#[derive(Debug)]
pub(super) struct Scale {
    stops: Vec<(u64, i32)>,
    pub(super) breaks: Vec<Break>,
}

/// A gap is drawn as a break only when it is this many times the usual one.
const BREAK_FACTOR: u64 = 100;
/// Pixels left free above and below the band of a break.
const PAD: i32 = 16;
/// Pixels for all gaps that are not breaks: at most, or for very many moments at most these for each of them.
const HEIGHT: f64 = 376.0;
const HEIGHT_EACH: f64 = 1.5;
/// Pixels below a large glyph.
const ROOM: f64 = 24.0;
/// Pixels of a usual gap; of the shortest and the longest one, if there is room.
const USUAL: f64 = 5.0;
const SHORTEST: f64 = 3.0;
const LONGEST: f64 = 30.0;

impl Scale {
    /// A scale that begins at pixel `top`. `cut` says whether the gap between two moments must be drawn as a break
    /// because something was left out in it.
    pub(super) fn new(moments: &Moments, top: i32, cut: impl Fn(u64, u64) -> bool) -> Self {
        let times = &moments.times;
        let mut gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        let usual = gaps.get(gaps.len().saturating_sub(1) / 2).copied().unwrap_or(1);
        let longest = longest_without_break(&gaps, usual).max(moments.together);
        let is_break = |from: u64, to: u64| to - from > longest || cut(from, to);
        // The square root: a gap four times as long looks twice as long.
        let height = |gap: u64| ((gap as f64 / usual as f64).sqrt() * USUAL).clamp(SHORTEST, LONGEST);
        let uncut = times.windows(2).filter(|pair| !is_break(pair[0], pair[1]));
        let wanted: f64 = uncut.map(|pair| height(pair[1] - pair[0])).sum();
        let shrink = (HEIGHT.max(HEIGHT_EACH * times.len() as f64) / wanted).min(1.0);
        let mut scale = Self { stops: Vec::with_capacity(times.len()), breaks: Vec::new() };
        let mut y = f64::from(top);
        for (index, &time) in times.iter().enumerate() {
            if let Some(before) = index.checked_sub(1) {
                let (from, to) = (times[before], time);
                if is_break(from, to) {
                    let room = if moments.roomy.contains(&from) { PAD / 2 } else { 0 };
                    let top = y as i32 + PAD + room;
                    let band = Break { from, to, top, bottom: top + 24 };
                    y = f64::from(band.bottom + PAD);
                    scale.breaks.push(band);
                } else {
                    let least = if moments.roomy.contains(&from) { ROOM } else { 0.0 };
                    y += (height(to - from) * shrink).max(least);
                }
            }
            scale.stops.push((time, y as i32));
        }
        scale
    }

    /// The pixel of a time; times outside of the scale stand at its ends.
    pub(super) fn y(&self, time: u64) -> i32 {
        let after = self.stops.partition_point(|&(stop, _)| stop < time);
        match (after.checked_sub(1).map(|before| self.stops[before]), self.stops.get(after)) {
            (_, Some(&(stop, y))) if stop == time => y,
            (Some((from, top)), Some(&(to, bottom))) => {
                let part = i128::from(time - from) * i128::from(bottom - top) / i128::from(to - from);
                top + part as i32
            }
            (Some((_, y)), None) | (None, Some(&(_, y))) => y,
            (None, None) => 0,
        }
    }

    /// The last pixel.
    pub(super) fn bottom(&self) -> i32 {
        self.stops.last().map_or(0, |&(_, y)| y)
    }

    /// The drawn moments with their pixels, ascending.
    pub(super) fn stops(&self) -> &[(u64, i32)] {
        &self.stops
    }

    /// The break that ends at `time`, if one does.
    pub(super) fn break_before(&self, time: u64) -> Option<&Break> {
        self.breaks.iter().find(|gap| gap.to == time)
    }
}

/// A gap is a break if it is far longer than the usual one and longer than all shorter ones together that are none.
fn longest_without_break(ascending: &[u64], usual: u64) -> u64 {
    let mut sum = 0_u64;
    for &gap in ascending {
        if gap > usual.saturating_mul(BREAK_FACTOR) && gap > sum {
            return gap - 1;
        }
        sum = sum.saturating_add(gap);
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(times: &[u64]) -> Moments {
        Moments { times: times.to_vec(), ..Moments::default() }
    }

    #[test]
    fn ten_seconds_between_two_bursts_become_one_break() {
        let times = [0, 100, 200, 300, 10_000_000_000, 10_000_000_100];
        let scale = Scale::new(&moments(&times), 50, |_, _| false);
        assert_eq!(scale.breaks.len(), 1);
        assert_eq!((scale.breaks[0].from, scale.breaks[0].to), (300, 10_000_000_000));
        assert!(scale.bottom() < 250, "{scale:?}");
    }

    #[test]
    fn a_gap_in_which_something_was_left_out_is_a_break_however_short() {
        let scale = Scale::new(&moments(&[0, 100, 200]), 0, |from, _| from == 100);
        assert_eq!(scale.breaks.iter().map(|gap| gap.from).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn later_is_lower_between_stops_and_at_the_end_of_the_clock() {
        let times = [3, 5, 400, 90_000, u64::MAX];
        let scale = Scale::new(&moments(&times), 10, |_, _| false);
        let probes = [0, 3, 4, 5, 100, 400, 5_000, 90_000, u64::MAX / 2, u64::MAX];
        let pixels: Vec<i32> = probes.iter().map(|&time| scale.y(time)).collect();
        assert!(pixels.is_sorted(), "{pixels:?}");
    }

    #[test]
    fn a_gap_is_no_break_that_is_shorter_than_all_that_is_drawn_without_one() {
        // Many gaps of 1 ns make 1,500 ns look long, but not beside the burst's 2,000 ns.
        let times: Vec<u64> = (0..2_000).chain([3_500, 3_501]).collect();
        assert_eq!(Scale::new(&moments(&times), 0, |_, _| false).breaks, []);
        let times: Vec<u64> = (0..2_000).chain([4_500, 4_501]).collect();
        assert_eq!(Scale::new(&moments(&times), 0, |_, _| false).breaks.len(), 1);
    }

    #[test]
    fn many_moments_share_the_height_that_there_is() {
        for (number, height) in [(150, HEIGHT as i32), (1_000, 1_500)] {
            let times: Vec<u64> = (0..number).map(|number| number * 40).collect();
            let bottom = Scale::new(&moments(&times), 0, |_, _| false).bottom();
            assert!((height - 1..=height).contains(&bottom), "{bottom}");
        }
    }

    #[test]
    fn a_gap_in_which_an_ipi_travels_is_no_break() {
        let mut moments = moments(&[0, 1, 2, 3, 4_000]);
        assert_eq!(Scale::new(&moments, 0, |_, _| false).breaks.len(), 1);
        moments.together = 5_000;
        assert_eq!(Scale::new(&moments, 0, |_, _| false).breaks, []);
    }

    #[test]
    fn a_large_glyph_has_room_below_it_however_soon_the_next_moment_comes() {
        let mut moments = moments(&[0, 1, 1_000, 2_000]);
        moments.roomy.insert(0);
        let scale = Scale::new(&moments, 0, |_, _| false);
        assert!(scale.y(1) - scale.y(0) >= ROOM as i32, "{scale:?}");
    }

    #[test]
    fn an_empty_scale_has_no_extent() {
        assert_eq!(Scale::new(&moments(&[]), 40, |_, _| false).bottom(), 0);
        assert_eq!(Scale::new(&moments(&[7]), 40, |_, _| false).y(7), 40);
    }
}
