//! Where a time stands on the page: close events are kept apart, idle gaps are cut short by a visible break.

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

/// A monotonic map from time to pixels, with all drawn moments as its stops.
#[derive(Debug)]
pub(super) struct Scale {
    stops: Vec<(u64, i32)>,
    pub(super) breaks: Vec<Break>,
}

/// Pixels between two drawn moments: at least, one usual gap apart, and at most without a break.
#[derive(Clone, Copy)]
struct Spacing {
    nearest: u64,
    usual: u64,
    farthest: u64,
}

const WIDE: Spacing = Spacing { nearest: 3, usual: 4, farthest: 26 };
/// For so many moments that the page would become too tall.
const DENSE: Spacing = Spacing { nearest: 1, usual: 2, farthest: 20 };
/// The largest number of moments that is drawn wide.
const MOST_WIDE: usize = 160;
/// A gap is cut short when it is this many times the usual one.
const BREAK_FACTOR: u64 = 100;
/// Pixels left free above and below the band of a break.
const PAD: i32 = 20;

impl Scale {
    /// A scale for these moments (ascending, distinct; nanoseconds) that begins at pixel `top`. `cut` says
    /// whether the gap between two of them must be drawn as a break because something was left out in it.
    pub(super) fn new(times: &[u64], top: i32, cut: impl Fn(u64, u64) -> bool) -> Self {
        let mut gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        let usual = gaps.get(gaps.len().saturating_sub(1) / 2).copied().unwrap_or(1).max(1);
        let mut scale = Self { stops: Vec::with_capacity(times.len()), breaks: Vec::new() };
        let spacing = if times.len() > MOST_WIDE { DENSE } else { WIDE };
        let mut y = top;
        for (index, &time) in times.iter().enumerate() {
            if let Some(before) = index.checked_sub(1) {
                let (from, to) = (times[before], time);
                let gap = to - from;
                if gap > usual.saturating_mul(BREAK_FACTOR) || cut(from, to) {
                    // Longer gaps get a taller band, by the order of magnitude only.
                    let magnitude = (gap / usual / BREAK_FACTOR).checked_ilog10().unwrap_or(0);
                    let band = Break { from, to, top: y + PAD, bottom: y + PAD + 22 + 4 * magnitude as i32 };
                    y = band.bottom + PAD;
                    scale.breaks.push(band);
                } else {
                    // The square root: a gap four times as long looks twice as long.
                    let height = (gap.saturating_mul(spacing.usual * spacing.usual) / usual).isqrt();
                    y += height.clamp(spacing.nearest, spacing.farthest) as i32;
                }
            }
            scale.stops.push((time, y));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_between_two_bursts_become_one_break() {
        let times = [0, 100, 200, 300, 10_000_000_000, 10_000_000_100];
        let scale = Scale::new(&times, 50, |_, _| false);
        assert_eq!(scale.breaks.len(), 1);
        assert_eq!((scale.breaks[0].from, scale.breaks[0].to), (300, 10_000_000_000));
        assert!(scale.bottom() < 250, "{scale:?}");
    }

    #[test]
    fn a_gap_in_which_something_was_left_out_is_a_break_however_short() {
        let scale = Scale::new(&[0, 100, 200], 0, |from, _| from == 100);
        assert_eq!(scale.breaks.iter().map(|gap| gap.from).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn later_is_lower_between_stops_and_at_the_end_of_the_clock() {
        let times = [3, 5, 400, 90_000, u64::MAX];
        let scale = Scale::new(&times, 10, |_, _| false);
        let probes = [0, 3, 4, 5, 100, 400, 5_000, 90_000, u64::MAX / 2, u64::MAX];
        let pixels: Vec<i32> = probes.iter().map(|&time| scale.y(time)).collect();
        assert!(pixels.is_sorted(), "{pixels:?}");
        let stops: Vec<i32> = times.iter().map(|&time| scale.y(time)).collect();
        assert!(stops.windows(2).all(|pair| pair[1] - pair[0] >= WIDE.nearest as i32), "{stops:?}");
    }

    #[test]
    fn an_empty_scale_has_no_extent() {
        assert_eq!(Scale::new(&[], 40, |_, _| false).bottom(), 0);
        assert_eq!(Scale::new(&[7], 40, |_, _| false).y(7), 40);
    }
}
