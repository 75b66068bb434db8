//! How durations and vectors are written.

/// A duration in nanoseconds, rounded to three or four significant digits, with a unit.
pub(super) fn duration(nanos: u64) -> String {
    precise(nanos, 3)
}

/// A duration in nanoseconds, rounded to that many significant digits or to the unit, with a unit.
pub(super) fn precise(nanos: u64, digits: u32) -> String {
    const UNITS: [(u64, &str, u32); 3] =
        [(1_000_000_000, "s", 9), (1_000_000, "ms", 6), (1_000, "\u{b5}s", 3)];
    for (unit, name, most) in UNITS {
        if nanos >= unit {
            // In the smallest steps that are shown, to the nearest one.
            let rounded = |decimals: u32| {
                let step = unit / 10_u64.pow(decimals);
                nanos.saturating_add(step / 2) / step
            };
            let fitting = digits.saturating_sub((nanos / unit).ilog10() + 1).min(most);
            // Rounding up may have added a digit.
            let decimals =
                if rounded(fitting) < 10_u64.pow(digits) { fitting } else { fitting.saturating_sub(1) };
            let scale = 10_u64.pow(decimals);
            let (whole, rest) = (rounded(decimals) / scale, rounded(decimals) % scale);
            return match decimals as usize {
                0 => format!("{whole} {name}"),
                width => format!("{whole}.{rest:0width$} {name}"),
            };
        }
    }
    format!("{nanos} ns")
}

/// Ascending durations in nanoseconds, each with as many digits as tell it from its neighbours, three at least.
pub(super) fn distinct(ascending: &[u64]) -> Vec<String> {
    let mut texts: Vec<String> = ascending.iter().map(|&nanos| duration(nanos)).collect();
    for digits in 4..=12 {
        let same: Vec<usize> = (1..texts.len()).filter(|&index| texts[index - 1] == texts[index]).collect();
        for index in same.into_iter().flat_map(|index| [index - 1, index]) {
            texts[index] = precise(ascending[index], digits);
        }
    }
    texts
}

/// A number of things: "1 IPI", "2 IPIs".
pub(super) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// CPU numbers as ranges: `0-3,7`.
pub(super) fn ranges(ascending: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = ascending;
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(first..).take_while(|&(&cpu, expected)| cpu == expected).count();
        let last = rest[run - 1];
        let comma = if text.is_empty() { "" } else { "," };
        text =
            if run == 1 { format!("{text}{comma}{first}") } else { format!("{text}{comma}{first}-{last}") };
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_three_digits_and_are_rounded_to_the_nearest() {
        let texts = [0, 999, 1_000, 12_345, 250_000, 9_999_999, 10_000_000_000, u64::MAX / 2].map(duration);
        let expected = ["0 ns", "999 ns", "1.00 \u{b5}s", "12.3 \u{b5}s", "250 \u{b5}s", "10.0 ms", "10.0 s"];
        assert_eq!(texts[..7], expected);
        assert_eq!(texts[7], "9223372037 s");
    }

    #[test]
    fn neighbours_get_as_many_digits_as_tell_them_apart() {
        let times = [1_770_000, 15_001_531_221, 15_001_767_045, 16_000_000_000];
        assert_eq!(distinct(&times), ["1.77 ms", "15.0015 s", "15.0018 s", "16.0 s"]);
        assert_eq!(distinct(&[5_000_000_001, 5_000_000_002]), ["5.000000001 s", "5.000000002 s"]);
    }

    #[test]
    fn cpu_numbers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
