//! How durations and vectors are written.

/// A duration in nanoseconds, rounded to three or four significant digits, with a unit.
pub(super) fn duration(nanos: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "\u{b5}s")];
    for (unit, name) in UNITS {
        if nanos >= unit {
            // The number of the smallest steps that are shown, to the nearest one.
            let steps = |step: u64| nanos.saturating_add(step / 2) / step;
            let (hundredths, tenths) = (steps(unit / 100), steps(unit / 10));
            return if hundredths < 1_000 {
                format!("{}.{:02} {name}", hundredths / 100, hundredths % 100)
            } else if tenths < 1_000 {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            } else {
                format!("{} {name}", steps(unit))
            };
        }
    }
    format!("{nanos} ns")
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
    fn cpu_numbers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
